"""The names of the scores that a comparison tells, and what they mean.

Knows nothing of how they are computed.
"""

ACCURACY, CHARACTER_F1, EXACT_MATCH, ROUGE_L, LOSS = "accuracy", "character F1", "exact match", "ROUGE-L", "loss"
MEANINGS = {
    ACCURACY: "the share of rows whose label is right",
    CHARACTER_F1: "the F1 of the characters that the written and the expected answer share, in any order",
    EXACT_MATCH: "the share of answers that are the expected ones, but for white space",
    ROUGE_L: "the F-measure of the longest sequence of words that the two share, by rouge-score",
    LOSS: "the loss of the expected answer in nats a token, without the token that ends it; lower is better",
}
"""What each score is, as a mean over rows."""
