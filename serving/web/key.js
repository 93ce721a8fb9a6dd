// The API key: kept for this tab alone, sent with every request, and needed for pictures, too.
const name = "riverlens-key";

export const key = () => sessionStorage.getItem(name) || "";

export function setKey(value) {
  if (value) sessionStorage.setItem(name, value);
  else sessionStorage.removeItem(name);
}

/** As `fetch`, with the key. */
export function call(address, options = {}) {
  const headers = new Headers(options.headers);
  if (key()) headers.set("Authorization", `Bearer ${key()}`);
  return fetch(address, { ...options, headers });
}

async function pictureOf(address) {
  const response = await call(address);
  if (!response.ok) throw new Error(`The server answered ${response.status}.`);
  return URL.createObjectURL(await response.blob());
}

/** Show a picture; a browser sends no key for one by itself. */
export async function showPicture(image, address) {
  if (!key()) {
    image.src = address;
    return;
  }
  try {
    image.src = await pictureOf(address);
    image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
  } catch {
    image.removeAttribute("src");
  }
}

/** Follow a link to a picture, which needs the key. */
export async function openPicture(event, address) {
  if (!key()) return;
  event.preventDefault();
  location.assign(await pictureOf(address));
}
