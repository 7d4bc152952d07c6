// Dark or light: the system's choice, until the button says otherwise. A classic script in <head>, not a module: it has
// to run before the first paint, or a page with the other theme would flash.
"use strict";
(() => {
  const NAME = "swiftdiffusion.theme";
  const system = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => {
    try {
      return localStorage.getItem(NAME);
    } catch {
      return null; // storage is switched off: the system's choice
    }
  };
  const current = () => document.documentElement.dataset.theme || (system.matches ? "dark" : "light");
  const apply = (theme) => {
    if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
  };
  apply(stored());

  document.addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme").addEventListener("click", () => {
      const wanted = current() === "dark" ? "light" : "dark";
      const asSystem = wanted === (system.matches ? "dark" : "light");
      apply(asSystem ? null : wanted); // back at the system's choice, the page follows the system again
      try {
        if (asSystem) localStorage.removeItem(NAME);
        else localStorage.setItem(NAME, wanted);
      } catch {
        // not remembered then
      }
    });
  });
})();
