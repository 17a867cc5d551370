"""What each token of a sentence looks at: the attention weights of one layer, drawn in the terminal."""

import torch

import llamita

SHADES = " .:-=+*#%@"

llm = llamita.load(kernels="off")  # both passes below by the plain model, so that they can be equal
ids = llm.tokenizer.encode("Tom had a red ball. Anna had a blue ball.")
names = [llm.tokenizer.decode([token], skip_special_tokens=False).strip() or "_" for token in ids]
last = llm.model.config.num_hidden_layers - 1
with torch.no_grad():
    # Only this layer is recorded; the logits are those of a run without recording, to the bit.
    out = llm.model(torch.tensor([ids]), output_attentions=[last])
    assert torch.equal(out.logits, llm.model(torch.tensor([ids])).logits)

weights = out.attentions[0][0].mean(0)  # (B, N, T, S) -> (T, S), the mean of all heads
for name, row in zip(names, weights.tolist(), strict=True):
    print(f"{name:>18} ", "".join(SHADES[round(9 * weight / max(row))] * 2 for weight in row))
