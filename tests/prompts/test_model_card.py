"""The table of results, for results of this version and of earlier ones."""

from ptuning.prompts.model_card import results_table

EARLIER = {"num_rows": 1600, "accuracy": 0.75, "interval": [0.728, 0.771], "loss": 0.25, "num_cut": 0}


def test_table_has_the_macro_f1_where_it_was_measured():
    classes = {**EARLIER, "macro_f1": 0.7, "label_log_loss": 0.5}
    assert results_table({"before": EARLIER, "now": classes}) == [
        "|        | rows  | accuracy | 95 % interval  | loss  | macro-F1 |",
        "|--------|-------|----------|----------------|-------|----------|",
        "| before | 1,600 | 0.750    | 0.728 to 0.771 | 0.250 | -        |",
        "| now    | 1,600 | 0.750    | 0.728 to 0.771 | 0.250 | 0.700    |",
    ]
    assert results_table({"before": EARLIER})[0] == "|        | rows  | accuracy | 95 % interval  | loss  |"
    assert results_table({}) == []


def test_table_shows_what_is_undefined():
    nothing = {"num_rows": 0, "accuracy": None, "interval": [0.0, 1.0], "loss": None, "macro_f1": None}
    assert results_table({"no rows": nothing})[2] == "| no rows | 0    | -        | 0.000 to 1.000 | -    |"
