// What this browser keeps. Two gateways behind one host differ by path only: each has its own names.

const SCOPE = `swiftdiffusion:${location.pathname.replace(/[^/]*$/, "")}`;

/** Small settings. A browser that refuses storage forgets them with the page, and no more. */
export function remember(name, value) {
  try {
    localStorage.setItem(`${SCOPE}${name}`, JSON.stringify(value));
  } catch {
    // full or switched off
  }
}

export function recall(name, otherwise = null) {
  try {
    return JSON.parse(localStorage.getItem(`${SCOPE}${name}`)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

/** Kept until the tab is closed. */
export function rememberForTab(name, text) {
  try {
    sessionStorage.setItem(`${SCOPE}${name}`, text);
  } catch {
    // switched off
  }
}

export function recallForTab(name) {
  try {
    return sessionStorage.getItem(`${SCOPE}${name}`) ?? "";
  } catch {
    return "";
  }
}

let opened = null;

function database() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(SCOPE, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("pictures", { keyPath: "id" });
      request.result.createObjectStore("drafts");
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

/** `work(objectStore)` in one transaction; answers what its request gave, once all of it is written. */
async function within(name, mode, work) {
  const transaction = (await database()).transaction(name, mode);
  const request = work(transaction.objectStore(name));
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request?.result);
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });
}

/** Pictures with their parameters, each under its `id`. */
export const pictures = {
  all: () => within("pictures", "readonly", (store) => store.getAll()),
  put: (picture) => within("pictures", "readwrite", (store) => store.put(picture)),
  remove: (ids) => within("pictures", "readwrite", (store) => void ids.forEach((id) => store.delete(id))),
};

/** What is too large for localStorage: the pictures of the form's ControlNets. */
export const drafts = {
  get: (name) => within("drafts", "readonly", (store) => store.get(name)),
  put: (name, value) => within("drafts", "readwrite", (store) => store.put(value, name)),
};
