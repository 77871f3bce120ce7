// The box to type into, where the page is served by see.py --serve.
import { el } from "./pictures.mjs";

const FIELDS = [
  ["max_new_tokens", "new tokens", { min: 1, max: 32, step: 1 }],
  ["temperature", "temperature", { min: 0, max: 5, step: 0.1 }],
  ["pad_to", "pad to", { min: 0, max: 64, step: 1 }],
];

// A form that asks the server for another trace and hands it to `show`.
export function liveForm(live, show) {
  const text = el("textarea", { rows: 3, spellcheck: "false", maxlength: 20000, id: "text" });
  text.value = live.text;
  const inputs = FIELDS.map(([name, label, bounds]) => {
    const input = el("input", { type: "number", value: live[name], ...bounds });
    return [name, input, el("label", {}, label, input)];
  });
  const masks = el("input", { type: "checkbox" });
  masks.checked = live.mask_padding;
  const says = el("p", { class: "readout", role: "status" });
  const button = el("button", { type: "submit" }, "Look");
  const question = () => ({
    text: text.value, mask_padding: masks.checked,
    ...Object.fromEntries(inputs.map(([name, input]) => [name, Number(input.value)])),
  });
  const ask = async () => {
    button.disabled = true;
    says.textContent = "The model is at work…";
    const answer = await fetch("look", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(question()),
    });
    const content = await answer.json();
    if (!answer.ok) throw new Error(content.error);
    return content;
  };
  const form = el("form", {
    class: "live", onsubmit: (event) => {
      event.preventDefault();
      ask().then(show, (error) => { says.textContent = error.message; }).finally(() => { button.disabled = false; });
    },
  }, el("label", { for: "text" }, live.label ?? "Text"), text,
  el("div", { class: "controls" }, inputs.map(([, , label]) => label),
    el("label", {}, masks, " mask padding"), button), says);
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  const askFor = (words) => {
    text.value = words;
    form.requestSubmit();
  };
  return { box: form, ask: askFor };
}
