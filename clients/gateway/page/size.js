// Width and height: proportions at about the area of the pipeline's default, in its multiples.
import { byId, element } from "./dom.js";

const PROPORTIONS = [[1, 1], [4, 3], [3, 2], [16, 9], [3, 4], [2, 3], [9, 16]];

let limits = { size_multiple: 8, max_size: 1024, width: 512, height: 512 };

const snapped = (value) => {
  const { size_multiple: multiple, max_size: most } = limits;
  const largest = Math.floor(most / multiple) * multiple;
  return Math.min(largest, Math.max(multiple, Math.round(value / multiple) * multiple));
};

/** The size with these proportions; where a side would be too long, both shrink. */
function sized([across, down]) {
  const unit = Math.sqrt((limits.width * limits.height) / (across * down));
  const factor = Math.min(1, limits.max_size / (unit * Math.max(across, down)));
  return [snapped(across * unit * factor), snapped(down * unit * factor)];
}

const chip = (proportions) => {
  const [width, height] = sized(proportions);
  const shape = element("span", { class: "shape" });
  shape.style.aspectRatio = proportions.join(" / ");
  shape.classList.toggle("tall", proportions[1] > proportions[0]);
  const title = `${width} × ${height}`;
  const properties = { type: "button", class: "chip", title, onclick: () => setSize(width, height) };
  const made = element("button", properties, shape, proportions.join(":"));
  Object.assign(made.dataset, { width, height });
  return made;
};

function markChosen() {
  for (const button of byId("presets").children) {
    const { width, height } = button.dataset;
    button.setAttribute("aria-pressed", String(width === byId("width").value && height === byId("height").value));
  }
}

export function setSize(width, height) {
  byId("width").value = width ?? "";
  byId("height").value = height ?? "";
  markChosen();
  byId("width").dispatchEvent(new Event("input", { bubbles: true }));
}

/** The rules of the pipeline that was chosen. */
export function setSizeLimits(pipeline) {
  limits = pipeline;
  for (const side of ["width", "height"]) {
    Object.assign(byId(side), { min: pipeline.size_multiple, max: pipeline.max_size, step: pipeline.size_multiple });
    byId(side).placeholder = pipeline[side];
  }
  byId("presets").replaceChildren(...PROPORTIONS.map(chip));
  markChosen();
}

export function connectSize() {
  for (const side of ["width", "height"]) {
    byId(side).addEventListener("input", markChosen);
    byId(side).addEventListener("change", () => {
      if (byId(side).value) byId(side).value = snapped(byId(side).valueAsNumber); // while typing it may be anything
      markChosen();
    });
  }
  byId("swap").addEventListener("click", () => setSize(byId("height").value, byId("width").value));
}
