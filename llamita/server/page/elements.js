// Builds elements. Text enters the page only as text nodes: nothing here, or anywhere else, parses HTML.

/** An element with properties, and children that are nodes or strings. */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** A button that calls a function. */
export function button(text, onclick, properties = {}) {
  return element("button", { type: "button", onclick, ...properties }, text);
}

/** The element with an id. */
export const byId = (id) => document.getElementById(id);

/** Make a text area as high as its text. */
export function fitHeight(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
}

/** Call a function when Enter is pressed without Shift, and not while an input method composes a character. */
export function onEnter(area, call) {
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      call();
    }
  });
}

/** A function that calls another before the next frame, once, however often it is called. */
export function atMostOncePerFrame(draw) {
  let isAsked = false;
  return () => {
    if (isAsked) return;
    isAsked = true;
    requestAnimationFrame(() => {
      isAsked = false;
      draw();
    });
  };
}
