"""The forms that a new method may start from: what its example is, beside the templates of the form's folder."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """An example of a whole method.

    Attributes:
        hooks: that it implements.
        does: in few words.
        function: its mathematics.
        option: its option, with a value.
        meaning: of the option.
        formula: what it computes.
        composition: how it behaves among other methods.
        cost: of a step.
        templates: the folder of its code; "" where that of the hooks serves.
    """

    hooks: tuple[str, ...]
    does: str
    function: str
    option: tuple[str, float]
    meaning: str
    formula: str
    composition: str
    cost: str
    templates: str = ""


FORMS = {
    "mixing": Form(
        hooks=("augment_batch",),
        does="images blended in pairs",
        function="blend",
        option=("alpha", 1.0),
        meaning="the own share is drawn from Beta(alpha, alpha), once a batch; > 0. WRITE: the paper's value",
        formula="share · own image + (1 − share) · another image of the same view, labels alike",
        composition="Labels take their shares, weights and smoothing along. Methods that must see whole images are "
        "named before it; those that compare views row by row are refused beside it.",
        cost="In each step a tensor of the images' size.",
        templates="mixing",
    ),
    "criterion": Form(
        hooks=("compute_loss",),
        does="a criterion of its own",
        function="row_losses",
        option=("epsilon", 1.0),
        meaning="factor of 1 − p, ≥ −1. WRITE: the paper's value",
        formula="Σ_k share_k · weight_k · [ −log p_k + epsilon · (1 − p_k) ] of each row",
        composition="It replaces the criterion, so it is refused beside another method that does. Mixed and smoothed "
        "labels, class weights and the conditional logits of other methods are heeded.",
        cost="In each step one softmax over the logits.",
        templates="criterion",
    ),
    "regulariser": Form(
        hooks=("compute_loss",),
        does="a penalty on the logits",
        function="logit_penalty",
        option=("penalty", 0.001),
        meaning="",
        formula="",
        composition="",
        cost="",
    ),
    "two-views": Form(
        hooks=("compute_loss",),
        does="two views of each image that must agree",
        function="disagreement",
        option=("weight", 1.0),
        meaning="factor of the disagreement in the loss, ≥ 0. WRITE: the paper's value",
        formula="loss + weight · mean of (p − q)², with p and q the predictions of the two views",
        composition="It compares two views row by row, so it is refused beside methods that mix each view with other "
        "images. The term is added to whatever the other methods make of the criterion.",
        cost="Twice the rows in each step.",
        templates="two-views",
    ),
}
