"""The known mistakes: their names, the rule of the assignment that each breaks, and the remedy.

diagnose.py and sanity_check.py --explain share this list. The code that makes a mistake is found by
its id: in our own modules in mistakes/, as a float64 formula in formulas.py and explanation.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from config import editions_where


@dataclass(frozen=True)
class Mistake:
    """`rule` is the line of the assignment that it breaks, `remedy` a sentence on how to fix it,
    and `option`, if any, an alternative on diagnose.py's command line.
    """

    component: str
    name: str
    rule: str
    remedy: str
    option: str = ""

    @property
    def id(self) -> str:
        return f"{self.component}: {self.name}"

    @property
    def advice(self) -> str:
        """The remedy, with the option if there is one."""
        return f"{self.remedy.removesuffix('.')}, or {self.option}." if self.option else self.remedy


PAIRS = "RoPE: the pairs (2i, 2i+1) of each head are rotated, interleaved, not split halves"
ANGLE = "RoPE: angle = position · theta^(-2i/head_dim), positions from 0, in float32"
SIGNS = "RoPE: (even, odd) becomes (even·cos - odd·sin, even·sin + odd·cos)"
BOTH = "RoPE: query and key are both rotated"
LAYERNORM = "LayerNorm: (x - mean) / sqrt(var + eps) · weight + bias over the features, biased var"
RMSNORM = "RMSNorm: x / sqrt(mean(x²) + eps) · weight over the features"
NORM = (
    "norm: divide by sqrt(variance or mean square + eps) over the features, then apply the weight"
)
ATTENTION = "attention: softmax(QKᵀ / sqrt(head_dim)) V, dropout on the probabilities"
MASK = (
    "editions: every position sees every position in "
    f"{editions_where(lambda edition: edition.attention == 'bidirectional')}; "
    f"attention is causal in {editions_where(lambda edition: edition.attention == 'causal')}"
)
GQA = (
    "GQA: each key/value head is repeated n_heads/n_kv_heads times; adjacent query heads share one"
)
MIXED = "attention: compute_output is applied to the concatenated heads"
SWIGLU = "FeedForward: w2(silu(w1 x) · w3 x)"
LAYER = "layer: h = x + attention(attention_norm(x)); out = h + feed_forward(ffn_norm(h))"
NETWORK = "Llama: the layers, then the final norm, then the output projection"
TEMPERATURE = "sampling: temperature first (logits / temperature), then softmax"
EPSILON = (
    "epsilon sampling: tokens with p < epsilon are dropped, the rest renormalised; if none is "
    "left, take the argmax"
)
TOP_P = "top-p sampling: the smallest set of the most probable tokens whose sum is at least top_p"
GREEDY = "sampling: temperature 0 is the argmax over the vocabulary"
LORA = "LoRA: y = W x + (alpha/rank)·B(A x), A (rank, in) ~ N(0, 0.02), B (out, rank) = 0, W frozen"
STEP = "AdamW: p -= lr·sqrt(1-β2^t)/(1-β1^t) · m/(sqrt(v)+eps)"
MOMENTS = "AdamW: m = β1 m + (1-β1) g; v = β2 v + (1-β2) g²"
DECAY = "AdamW: after the step p -= lr·weight_decay·p"
CLIPPING = "AdamW: clipping is by the norm over the group's gradients, before the moments"
HEAD = "classifier: hidden state of the last column, dropout, linear head, log-softmax"
LAST = (
    "Llama.forward: logits are (B, 1, V), of the last column, without targets; "
    "the classifier's are (B, labels)"
)
ADDITIONS = "additions: n texts a+b=c, a and b from 1000 to 9999, each unordered pair once"
ANSWER = "addition: the mean loss over the targets after =, to the end of the answer"
EPOCH = "addition: one optimizer step for each batch, in training mode; the mean loss is returned"
EVALUATION = "addition: the mean loss, in evaluation mode"


_OF_THE_LOSS = (
    ("the question carries loss as well", "Set the targets up to = to the ignored index, -1."),
    (
        "the question carries loss, the answer none",
        "Keep the targets after =, and set those before to the ignored index, -1.",
    ),
    ("= itself carries loss", "The first target that counts is the one whose input is =."),
    (
        "the answer's first digit carries no loss",
        "The target whose input is = is the first digit: it counts.",
    ),
    (
        "the answer's end carries no loss",
        "Keep the target 0 after the last digit: the model must learn where to stop.",
    ),
    ("the loss is summed, not averaged", "Average the losses that count; do not sum them."),
    ("the mean is over the question as well", "Divide by the number of targets that count."),
    ("softmax before cross-entropy", "F.cross_entropy takes logits: leave out the softmax."),
)
_MISTAKES = (
    Mistake(
        "rope", "split halves", PAIRS, "Pair feature 2i with 2i+1: reshape(..., -1, 2).unbind(-1)."
    ),
    Mistake(
        "rope",
        "pairs written back as halves",
        PAIRS,
        "Interleave the two results again: torch.stack((real, imag), -1).flatten(-2).",
    ),
    Mistake("rope", "wrong sign", SIGNS, "Swap the signs of the two sin terms."),
    Mistake(
        "rope",
        "positions from 1",
        ANGLE,
        "Count positions from 0: torch.arange(seqlen).",
    ),
    Mistake(
        "rope",
        "exponent without the 2",
        ANGLE,
        "Use torch.arange(0, head_dim, 2) / head_dim as exponents.",
    ),
    Mistake(
        "rope",
        "exponent without head_dim",
        ANGLE,
        "Divide the exponents by head_dim: torch.arange(0, head_dim, 2) / head_dim.",
    ),
    Mistake("rope", "query only", BOTH, "Rotate the key as well."),
    Mistake("rope", "key only", BOTH, "Rotate the query as well."),
    Mistake(
        "rope",
        "not in float32",
        ANGLE,
        "Call .float() on query and key, and keep positions and angles in float32.",
    ),
    Mistake(
        "norm",
        "unbiased variance",
        LAYERNORM,
        "Divide by the number of features: x.var(-1, keepdim=True, unbiased=False).",
    ),
    Mistake("norm", "eps outside the root", NORM, "Add self.eps inside the square root."),
    Mistake(
        "norm",
        "eps left out",
        NORM,
        "Add self.eps, which is config.layer_norm_eps, inside the square root.",
    ),
    Mistake("norm", "no gain", NORM, "Multiply by self.weight."),
    Mistake("norm", "no bias", LAYERNORM, "Add self.bias."),
    Mistake(
        "norm",
        "RMSNorm in place of LayerNorm",
        LAYERNORM,
        "This edition's norm is LayerNorm: subtract the mean, and add the bias.",
    ),
    Mistake(
        "norm",
        "LayerNorm in place of RMSNorm",
        RMSNORM,
        "This edition's norm is RMSNorm: do not subtract the mean, and leave out the bias.",
    ),
    Mistake(
        "norm",
        "wrong axis",
        NORM,
        "Take mean and variance over the last dimension: dim=-1, keepdim=True.",
    ),
    Mistake("norm", "another eps", NORM, "Pass config.layer_norm_eps, 1e-5, to every norm."),
    Mistake("norm", "norm left out", NORM, "Return the normalised input, not the input."),
    Mistake(
        "attention",
        "no scale",
        ATTENTION,
        "Divide the scores by math.sqrt(head_dim) before the softmax.",
    ),
    Mistake(
        "attention",
        "scaled by d",
        ATTENTION,
        "Divide the scores by the square root of head_dim, not by head_dim.",
    ),
    Mistake(
        "attention",
        "softmax on the wrong axis",
        ATTENTION,
        "Take the softmax over the keys: the last dimension of the scores.",
    ),
    Mistake(
        "attention",
        "causal where the edition is not",
        MASK,
        "Apply no mask.",
        "name the edition that has one with --edition",
    ),
    Mistake(
        "attention",
        "not causal where the edition is",
        MASK,
        "Set the scores of later positions to -inf before the softmax.",
        "name another --edition",
    ),
    Mistake(
        "attention",
        "mask after softmax",
        MASK,
        "A mask sets scores to -inf before the softmax, so that the rest still sums to 1.",
    ),
    Mistake(
        "attention",
        "no dropout",
        ATTENTION,
        "Apply self.attn_dropout to the probabilities before multiplying them by the values.",
    ),
    Mistake(
        "attention",
        "GQA heads tiled instead of repeated",
        GQA,
        "Use torch.repeat_interleave, not repeat, on the head dimension.",
    ),
    Mistake(
        "attention",
        "RoPE is not applied",
        BOTH,
        "Call apply_rotary_emb on query and key before the heads become a batch dimension.",
    ),
    Mistake(
        "attention",
        "scaled by the root of dim",
        ATTENTION,
        "Divide the scores by the square root of head_dim, not of dim.",
    ),
    Mistake(
        "attention",
        "compute_output left out",
        MIXED,
        "Apply self.compute_output to the concatenated heads.",
    ),
    Mistake("feed_forward", "w1 and w3 swapped", SWIGLU, "Apply silu to w1 x, not to w3 x."),
    Mistake(
        "feed_forward", "sigmoid in place of silu", SWIGLU, "silu(x) is x · sigmoid(x): F.silu."
    ),
    Mistake(
        "feed_forward",
        "silu left out",
        SWIGLU,
        "Apply F.silu to w1 x before multiplying by w3 x.",
    ),
    Mistake("feed_forward", "relu in place of silu", SWIGLU, "silu(x) is x · sigmoid(x): F.silu."),
    Mistake(
        "layer",
        "post-norm",
        LAYER,
        "Normalise the inputs of attention and feed-forward, not their outputs.",
    ),
    Mistake(
        "layer",
        "missing residual",
        LAYER,
        "Add the input of each half to its result: x + ..., then h + ....",
    ),
    Mistake(
        "layer",
        "residual from the normalised input",
        LAYER,
        "Add x itself, not attention_norm(x); and h itself, not ffn_norm(h).",
    ),
    Mistake(
        "layer",
        "residual from the layer's input twice",
        LAYER,
        "The second residual is h, the sum after attention, not x.",
    ),
    Mistake(
        "layer",
        "ffn_norm on the wrong tensor",
        LAYER,
        "ffn_norm takes h, the sum of x and attention's result.",
    ),
    Mistake(
        "layer",
        "half of the layer left out",
        LAYER,
        "Add the results of both halves, attention and feed-forward.",
    ),
    Mistake(
        "layer",
        "norm not used",
        LAYER,
        "Attention reads attention_norm(x), feed-forward ffn_norm(h).",
    ),
    Mistake("network", "final norm left out", NETWORK, "Apply the output projection to norm(h)."),
    Mistake(
        "generate",
        "multiplied by temperature",
        TEMPERATURE,
        "Divide the logits by the temperature.",
    ),
    Mistake(
        "generate",
        "temperature ignored",
        TEMPERATURE,
        "Divide the logits by the temperature before the softmax.",
    ),
    Mistake(
        "generate",
        "epsilon before temperature",
        TEMPERATURE,
        "Divide by the temperature and take the softmax before dropping tokens.",
    ),
    Mistake(
        "generate",
        "no filter",
        EPSILON,
        "Drop the improbable tokens: p < epsilon, or in "
        f"{editions_where(lambda edition: edition.top_p < 1)} the tokens beyond top_p.",
    ),
    Mistake(
        "generate",
        "no renormalisation",
        EPSILON,
        "Divide the remaining probabilities by their sum.",
    ),
    Mistake(
        "generate",
        "> against ≥",
        EPSILON,
        "Keep a token whose probability equals epsilon: probs >= epsilon.",
    ),
    Mistake(
        "generate",
        "nothing left is not handled",
        EPSILON,
        "If every token is below epsilon, keep the most probable one.",
    ),
    Mistake(
        "generate",
        "argmax of the wrong axis",
        GREEDY,
        "Take logits.argmax(dim=-1, keepdim=True) of logits (batch, vocabulary).",
    ),
    Mistake(
        "generate",
        "sampling ties",
        GREEDY,
        "Take the first of equal logits, as torch.argmax does; do not sample at temperature 0.",
    ),
    Mistake("lora", "no scaling", LORA, "Multiply the low-rank term by alpha / rank."),
    Mistake("lora", "alpha instead of alpha/rank", LORA, "Divide alpha by the rank."),
    Mistake(
        "lora",
        "A and B swapped",
        LORA,
        "lora_A (rank, in) is applied to the input, then lora_B (out, rank).",
    ),
    Mistake(
        "lora",
        "W is not frozen",
        LORA,
        "Set requires_grad to False on all parameters of the original layer.",
    ),
    Mistake(
        "lora",
        "B is not 0 at the start",
        LORA,
        "Initialise lora_B with zeros and lora_A with random numbers.",
    ),
    Mistake(
        "lora",
        "A is 0 at the start",
        LORA,
        "Draw lora_A from N(0, 0.02): if A and B are both 0, nothing is ever learned.",
    ),
    Mistake(
        "optimizer",
        "coupled decay",
        DECAY,
        "Do not change the gradient: shrink the weight itself, after the step.",
    ),
    Mistake(
        "optimizer",
        "decay before the step",
        DECAY,
        "Shrink the weight after the gradient step.",
    ),
    Mistake("optimizer", "decay without lr", DECAY, "Multiply the decay by the learning rate."),
    Mistake(
        "optimizer",
        "no decay",
        DECAY,
        "Multiply the weight by 1 - lr·weight_decay after the step.",
    ),
    Mistake(
        "optimizer",
        "second moment not corrected",
        STEP,
        "The step size also has sqrt(1-β2^t) in its numerator.",
    ),
    Mistake(
        "optimizer",
        "no bias correction",
        STEP,
        "With correct_bias the step size is lr·sqrt(1-β2^t)/(1-β1^t); t counts from 1.",
    ),
    Mistake("optimizer", "correct_bias ignored", STEP, "Without correct_bias the step size is lr."),
    Mistake(
        "optimizer",
        "plain instead of efficient form",
        STEP,
        "Add eps to the uncorrected sqrt(v), and put both corrections into the step size.",
    ),
    Mistake("optimizer", "eps inside the root", STEP, "Add eps to sqrt(v), not to v."),
    Mistake(
        "optimizer",
        "clipping after the moments, or none",
        CLIPPING,
        "Scale the gradients to max_grad_norm before updating m and v.",
    ),
    Mistake(
        "optimizer",
        "each parameter clipped by itself",
        CLIPPING,
        "Compute one norm over all gradients of the group.",
    ),
    Mistake(
        "classifier",
        "mean pooling",
        HEAD,
        "Read the last column of the hidden states: hidden[:, -1].",
    ),
    Mistake(
        "classifier",
        "first token",
        HEAD,
        "Read the last column of the hidden states, not the first.",
    ),
    Mistake(
        "classifier",
        "no dropout",
        HEAD,
        "Apply self.dropout to the hidden state before the head.",
    ),
    Mistake(
        "classifier",
        "dropout in evaluation",
        HEAD,
        "Use self.dropout, which model.eval() turns off, or F.dropout with self.training.",
    ),
    Mistake("classifier", "softmax for log-softmax", HEAD, "Return F.log_softmax(logits, dim=-1)."),
    Mistake(
        "classifier",
        "no log-softmax",
        HEAD,
        "Return F.log_softmax(logits, dim=-1), not the logits.",
    ),
    Mistake(
        "classifier",
        "logits of all positions",
        LAST,
        "Keep the last position only: h[:, [-1], :] in Llama.forward, hidden[:, -1] here.",
    ),
    Mistake(
        "rope",
        "imaginary taken for real in the second line",
        SIGNS,
        "The second line is real·sin + imaginary·cos: its first term has the real part.",
    ),
    Mistake(
        "rope",
        "real taken for imaginary in the second line",
        SIGNS,
        "The second line is real·sin + imaginary·cos: its second term has the imaginary part.",
    ),
    Mistake(
        "rope",
        "real taken for imaginary in the first line",
        SIGNS,
        "The first line is real·cos - imaginary·sin: its second term has the imaginary part.",
    ),
    Mistake(
        "rope",
        "imaginary taken for real in the first line",
        SIGNS,
        "The first line is real·cos - imaginary·sin: its first term has the real part.",
    ),
    Mistake(
        "rope",
        "wrong sign in the first line",
        SIGNS,
        "The first line is real·cos - imaginary·sin: subtract.",
    ),
    Mistake(
        "rope",
        "wrong sign in the second line",
        SIGNS,
        "The second line is real·sin + imaginary·cos: add.",
    ),
    Mistake(
        "rope",
        "a wrong term in the first line",
        SIGNS,
        "Write the first line as real·cos - imaginary·sin.",
    ),
    Mistake(
        "rope",
        "a wrong term in the second line",
        SIGNS,
        "Write the second line as real·sin + imaginary·cos.",
    ),
    Mistake(
        "rope",
        "real and imaginary part exchanged",
        SIGNS,
        "The first line, real·cos - imaginary·sin, belongs to the even features.",
    ),
    Mistake("rope", "cos and sin exchanged", SIGNS, "Swap cos and sin in both lines."),
    Mistake(
        "rope",
        "the key is computed from the query",
        BOTH,
        "Rotate the key's own features: a variable of the query is used in place of the key's.",
    ),
    Mistake(
        "rope",
        "frequencies from 1",
        ANGLE,
        "The first exponent is 0: use torch.arange(0, head_dim, 2) / head_dim.",
    ),
    Mistake(
        "rope",
        "exponent without its sign",
        ANGLE,
        "The exponents are negative: angle = position / theta ** exponent.",
    ),
    Mistake(
        "rope",
        "heads taken for positions",
        ANGLE,
        "Positions are dimension 1 of (batch, positions, heads, head_dim): broadcast over heads.",
    ),
    Mistake("rope", "query and key exchanged", BOTH, "Return the query first, then the key."),
    Mistake(
        "rope",
        "theta is ignored",
        ANGLE,
        "Use the argument theta as the base of the frequencies, not 10000.",
    ),
    Mistake(
        "rope",
        "the key takes the query's number of heads",
        GQA,
        "Use the key's own shape, key.shape: it may have fewer heads than the query.",
    ),
    Mistake("norm", "no root is taken", NORM, "Divide by the square root of (variance + eps)."),
    Mistake(
        "norm",
        "mean square in place of the variance",
        LAYERNORM,
        "The variance is the mean of (x - mean)², not of x².",
    ),
    Mistake(
        "norm",
        "statistics over all axes",
        NORM,
        "Take mean and variance over the last dimension only: dim=-1, keepdim=True.",
    ),
    Mistake(
        "attention",
        "multiplied by the root of d",
        ATTENTION,
        "Divide the scores by math.sqrt(head_dim).",
    ),
    Mistake(
        "attention",
        "no softmax",
        ATTENTION,
        "Take the softmax of the scores before multiplying by the values.",
    ),
    Mistake(
        "attention",
        "0 times infinity in the mask",
        MASK,
        "Write the mask with masked_fill or torch.where: 0 times infinity is NaN. "
        "Apply no mask if attention is bidirectional.",
    ),
    Mistake(
        "attention",
        "the mask hides the position itself",
        MASK,
        "A position attends to itself and earlier ones: mask triu(diagonal=1) only.",
    ),
    Mistake(
        "attention",
        "dropout before the softmax",
        ATTENTION,
        "Apply self.attn_dropout to the probabilities, after the softmax.",
    ),
    Mistake(
        "attention",
        "dropout on the output as well",
        ATTENTION,
        "Apply dropout to the probabilities only, not to their product with the values.",
    ),
    Mistake(
        "attention",
        "dropout on the output instead",
        ATTENTION,
        "Apply dropout to the probabilities, not to their product with the values.",
    ),
    Mistake(
        "attention",
        "scaled by the root of another size",
        ATTENTION,
        "Divide the scores by the square root of head_dim, the last dimension of query and key.",
    ),
    Mistake(
        "attention",
        "scaled after the softmax",
        ATTENTION,
        "Divide the scores by math.sqrt(head_dim) before the softmax, not the probabilities.",
    ),
    Mistake(
        "attention",
        "query and key exchanged",
        ATTENTION,
        "The scores are query @ key.transpose(-2, -1): one row for each query.",
    ),
    Mistake(
        "attention",
        "later scores set to 0",
        MASK,
        "Set the scores of later positions to -inf: a score of 0 keeps its share in the softmax.",
    ),
    Mistake(
        "attention",
        "the mask shows the next position",
        MASK,
        "A position attends to itself and earlier ones: mask triu(diagonal=1).",
    ),
    Mistake(
        "attention",
        "the mask hides earlier positions",
        MASK,
        "Hide the upper triangle, triu(diagonal=1): rows are queries, columns keys.",
    ),
    Mistake(
        "attention",
        "dropout in evaluation",
        ATTENTION,
        "Use self.attn_dropout, which model.eval() turns off, or F.dropout with self.training.",
    ),
    Mistake("feed_forward", "gelu in place of silu", SWIGLU, "silu(x) is x · sigmoid(x): F.silu."),
    Mistake("feed_forward", "added instead of multiplied", SWIGLU, "Multiply silu(w1 x) by w3 x."),
    Mistake("layer", "ffn_norm is not used", LAYER, "Feed-forward reads ffn_norm(h), not h."),
    Mistake(
        "layer", "attention_norm is not used", LAYER, "Attention reads attention_norm(x), not x."
    ),
    Mistake(
        "layer",
        "no norm is used",
        LAYER,
        "Attention reads attention_norm(x), and feed-forward ffn_norm(h).",
    ),
    Mistake(
        "layer",
        "the two norms exchanged",
        LAYER,
        "attention_norm comes before attention, ffn_norm before feed-forward.",
    ),
    Mistake(
        "layer",
        "the norm's gain and bias are skipped",
        LAYER,
        "Call the module, self.ffn_norm(h), not its _norm, which leaves out gain and bias.",
    ),
    Mistake(
        "generate",
        "nothing left: drawn from all tokens",
        EPSILON,
        "If every token is below epsilon, keep the most probable one.",
    ),
    Mistake(
        "generate",
        "nothing left: drawn evenly",
        EPSILON,
        "If every token is below epsilon, keep the most probable one.",
    ),
    Mistake(
        "generate",
        "the token that reaches top_p is left out",
        TOP_P,
        "Keep a token if the sum of those before it is below top_p.",
    ),
    Mistake(
        "generate",
        "> against ≥ in top-p",
        TOP_P,
        "Drop every token after the one at which the sum reaches top_p.",
    ),
    Mistake("generate", "sorted the wrong way", TOP_P, "Sort with descending=True."),
    Mistake(
        "generate",
        "ranks taken for token ids",
        TOP_P,
        "Map the sampled rank to its token id: order.gather(-1, rank).",
    ),
    Mistake(
        "generate",
        "tokens outside the nucleus are kept",
        TOP_P,
        "Set the tokens outside the nucleus to 0, not those inside.",
    ),
    Mistake(
        "generate",
        "epsilon in place of top-p",
        TOP_P,
        "This edition's filter is top-p.",
        "name another --edition",
    ),
    Mistake(
        "generate",
        "top-p in place of epsilon",
        EPSILON,
        "This edition's filter is epsilon.",
        "name another --edition",
    ),
    Mistake(
        "generate",
        "epsilon is compared with logits",
        EPSILON,
        "Compare epsilon with probabilities, after the softmax.",
    ),
    Mistake(
        "generate",
        "always the argmax",
        TEMPERATURE,
        "Above temperature 0, sample from the probabilities with torch.multinomial.",
    ),
    Mistake("generate", "argmin for argmax", GREEDY, "Take the largest logit: argmax."),
    Mistake(
        "lora",
        "B A without the transposes",
        LORA,
        "A linear layer computes x Wᵀ: write x @ (B @ A).T, or (x @ A.T) @ B.T. As is, it runs "
        "on square layers only.",
    ),
    Mistake(
        "lora",
        "A x without the transposes",
        LORA,
        "The features are the last dimension of x: write (x @ A.T) @ B.T.",
    ),
    Mistake(
        "lora", "A B instead of B A", LORA, "Write (x @ A.T) @ B.T: A is applied first, then B."
    ),
    Mistake(
        "lora",
        "A and B stored transposed",
        LORA,
        "lora_A has the shape (rank, in), lora_B the shape (out, rank).",
    ),
    Mistake("lora", "W x left out", LORA, "Add the output of the original layer."),
    Mistake("lora", "the low-rank term is subtracted", LORA, "Add the low-rank term."),
    Mistake("lora", "rank/alpha instead of alpha/rank", LORA, "Divide alpha by the rank."),
    Mistake(
        "lora",
        "no scaling in merge_lora_weights",
        LORA,
        "Multiply B A by alpha / rank when merging, too.",
    ),
    Mistake(
        "optimizer",
        "first moment not corrected",
        STEP,
        "The step size also has 1-β1^t in its denominator.",
    ),
    Mistake(
        "optimizer",
        "the root of 1-β2^t is not taken",
        STEP,
        "The step's numerator is sqrt(1-β2^t), not 1-β2^t.",
    ),
    Mistake(
        "optimizer",
        "correct_bias reversed",
        STEP,
        "Correct the bias if correct_bias is True, not if it is False.",
    ),
    Mistake(
        "optimizer",
        "t does not start at 1",
        STEP,
        "Increment t before using it: it is 1 in the first step.",
    ),
    Mistake(
        "optimizer",
        "the corrected moments are kept",
        MOMENTS,
        "Store the uncorrected m and v: put the corrections into the step size or other variables.",
    ),
    Mistake(
        "optimizer",
        "1-β left out of the moments",
        MOMENTS,
        "Multiply the gradient by 1-β1 in m, and its square by 1-β2 in v.",
    ),
    Mistake(
        "optimizer", "the gradient is not squared in v", MOMENTS, "v averages the squared gradient."
    ),
    Mistake(
        "optimizer",
        "β1 and β2 exchanged",
        MOMENTS,
        "β1, the first of betas, belongs to m; β2 belongs to v.",
    ),
    Mistake(
        "optimizer",
        "all parameters share one t",
        STEP,
        "Count steps for each parameter: keep t in self.state[p], with m and v.",
    ),
    Mistake("optimizer", "the weight grows by the decay", DECAY, "Subtract the decay."),
    Mistake("optimizer", "the step is added", STEP, "Subtract the step."),
    Mistake(
        "optimizer",
        "short gradients are scaled up",
        CLIPPING,
        "Scale only gradients whose norm is above max_grad_norm.",
    ),
    Mistake(
        "optimizer",
        "decay by the corrected step size",
        DECAY,
        "Multiply the decay by the learning rate itself, without the bias correction.",
    ),
    Mistake(
        "classifier",
        "padding tested as id 0",
        HEAD,
        "Read hidden[:, -1]: id 0 is an ordinary token, not padding.",
    ),
    Mistake(
        "classifier",
        "logits taken for hidden states",
        HEAD,
        "self.llama returns (logits, hidden_states): use the second.",
    ),
    Mistake(
        "classifier",
        "max pooling",
        HEAD,
        "Read the last column of the hidden states: hidden[:, -1].",
    ),
    Mistake(
        "classifier",
        "the last token but one",
        HEAD,
        "Read the last column of the hidden states: hidden[:, -1].",
    ),
    Mistake(
        "classifier",
        "log-softmax over the batch",
        HEAD,
        "Normalise over the labels: F.log_softmax(logits, dim=-1).",
    ),
    Mistake(
        "classifier",
        "log-softmax twice over",
        HEAD,
        "Pass the logits to log_softmax, not their softmax.",
    ),
    Mistake(
        "classifier",
        "logits without a dimension of positions",
        LAST,
        "Keep the dimension: h[:, [-1], :], with a list.",
    ),
    Mistake(
        "classifier", "logits of the first position", LAST, "Keep the last position: h[:, [-1], :]."
    ),
    Mistake(
        "classifier",
        "final norm left out of Llama.forward",
        NETWORK,
        "Apply self.norm after the layers.",
    ),
    Mistake(
        "classifier",
        "hidden states before the final norm",
        NETWORK,
        "Return the hidden states after self.norm.",
    ),
    Mistake(
        "classifier",
        "dropout on the logits",
        HEAD,
        "Apply dropout to the hidden state, before the head, and nowhere else.",
    ),
    Mistake(
        "classifier",
        "final norm left out",
        NETWORK,
        "Use the hidden states that self.llama returns, or apply self.llama.norm after its layers.",
    ),
    Mistake(
        "classifier",
        "padding is looked for",
        HEAD,
        "Read hidden[:, -1], as the assignment's classifier does.",
    ),
    *(
        Mistake(component, name, ANSWER, remedy)
        for component in ("train_one_epoch", "evaluate_loss")
        for name, remedy in _OF_THE_LOSS
    ),
    Mistake(
        "addition_data",
        "a pair comes twice",
        ADDITIONS,
        "Keep the drawn pairs in a set, and redraw a pair that is already in it.",
    ),
    Mistake(
        "addition_data",
        "a pair comes in both orders",
        ADDITIONS,
        "Store pairs as (min(a, b), max(a, b)): a+b and b+a count as the same.",
    ),
    Mistake(
        "addition_data", "numbers below 1000", ADDITIONS, "Draw with random.randint(1000, 9999)."
    ),
    Mistake(
        "addition_data", "numbers above 9999", ADDITIONS, "Draw with random.randint(1000, 9999)."
    ),
    Mistake("addition_data", "spaces in the additions", ADDITIONS, "Write a+b=c without spaces."),
    Mistake("addition_data", "the sum is left out", ADDITIONS, "Write the sum after =."),
    Mistake("addition_data", "one addition more", ADDITIONS, "Return exactly n additions."),
    Mistake("addition_data", "one addition fewer", ADDITIONS, "Return exactly n additions."),
    Mistake(
        "train_one_epoch",
        "gradients are never set to 0",
        EPOCH,
        "Call optimizer.zero_grad() for each batch, before loss.backward().",
    ),
    Mistake(
        "train_one_epoch",
        "gradients are set to 0 before the step",
        EPOCH,
        "Call optimizer.zero_grad() before loss.backward(), or after the step.",
    ),
    Mistake(
        "train_one_epoch",
        "no step is made",
        EPOCH,
        "Call loss.backward(), then optimizer.step().",
    ),
    Mistake(
        "train_one_epoch", "the model is not in training mode", EPOCH, "Call model.train() first."
    ),
    Mistake(
        "train_one_epoch",
        "the batches' losses are not averaged",
        EPOCH,
        "Divide the sum by the number of batches.",
    ),
    Mistake("train_one_epoch", "the last batch's loss", EPOCH, "Return the mean over all batches."),
    Mistake(
        "evaluate_loss", "the model is in training mode", EVALUATION, "Call model.eval() first."
    ),
    Mistake(
        "evaluate_loss",
        "the batches' losses are not averaged",
        EVALUATION,
        "Divide the sum by the number of batches.",
    ),
    Mistake(
        "evaluate_loss", "the last batch's loss", EVALUATION, "Return the mean over all batches."
    ),
)
MISTAKES = {mistake.id: mistake for mistake in _MISTAKES}


def mistakes_of(component: str) -> Iterator[Mistake]:
    return (mistake for mistake in _MISTAKES if mistake.component == component)
