"""The right answer."""

from collections.abc import Sequence

from tutelage.rewards.reward import Reward, Scorer


def scorer(reward: Reward) -> Scorer:
    """Return the function that gives 1.0 to a response with the reference's answer, and 0.0 to others."""
    from tutelage.evaluation.generated import answer_reader, exact_answers

    answer_reader(reward.answer)  # a rule that is wrong is refused before the run begins

    def score(prompts: Sequence[str], responses: Sequence[str], references: Sequence[str]) -> list[float]:
        return [float(right) for right in exact_answers(responses, references, reward.answer)]

    return score
