"""ROUGE-L with the reference."""

from collections.abc import Sequence

from tutelage.rewards.reward import Reward, Scorer


def scorer(reward: Reward) -> Scorer:
    """Return the function that gives the ROUGE-L F-measure, with stemming, in [0, 1].

    Reference: Lin 2004, by the package rouge-score.
    """
    from rouge_score import rouge_scorer

    rouge = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)

    def score(prompts: Sequence[str], responses: Sequence[str], references: Sequence[str]) -> list[float]:
        return [rouge.score(r, y)["rougeL"].fmeasure for r, y in zip(references, responses, strict=True)]

    return score
