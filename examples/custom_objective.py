"""A divergence and an objective of your own, on rollouts, without the training loop.

    python examples/custom_objective.py         tiny random models, a few seconds

`linear_divergence` takes any function of (student_logp, teacher_logp), both `[chunk, vocabulary]` in nats, that
returns one value a position, and differentiates it chunk by chunk: the logits of the whole batch never exist.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from tutelage import LanguageModel, LocalTeacher, Rollout, linear_divergence
from tutelage.config import Decoding
from tutelage.methods import Terms
from tutelage.rollouts.decoding import decode

STOP, VOCABULARY = 1, 50


def squared_hellinger(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
    """½ Σ (√q − √p)² per position, in [0, 1]: symmetric and bounded, with p the teacher and q the student."""
    return 0.5 * ((student_logp / 2).exp() - (teacher_logp / 2).exp()).square().sum(-1)


@dataclass(frozen=True)
class ConfidentTeacher:
    """Matches the teacher by the Hellinger distance, and most where the teacher is sure of the token.

    Formula: Σ_t w_t H²(p_t, q_t), w_t = p_t(y_t)^power. Weights need values per position, which `linear_divergence`
    also returns; they carry no gradient.
    """

    power: float = 1.0

    def units(self, rollout: Rollout) -> dict[str, float]:
        """Count the tokens, by which a loop divides the term of that name."""
        return {"student": rollout.positions}

    def terms(self, rollout: Rollout, student: LanguageModel, teacher: LocalTeacher) -> Terms:
        """Return the sum over the tokens, and what a loop should log."""
        student_hidden, teacher_hidden = student.hidden(rollout), teacher.hidden(rollout)
        targets = student.targets(rollout)
        ones = torch.ones(rollout.positions, device=student.device)
        with torch.no_grad():
            sure = linear_divergence(teacher_hidden, teacher.head, targets=targets, cross_entropy=ones)
        assert sure.student_logp is not None  # of whichever model is given first: here, the teacher
        weights = (self.power * sure.student_logp).exp()
        scores = linear_divergence(
            student_hidden,
            student.head,
            teacher_hidden,
            teacher.head,
            squared_hellinger,
            coefficients=weights,
        )
        assert scores.divergence is not None
        return Terms({"student": scores.total}, {"hellinger": scores.divergence.sum(), "weight": weights.sum()})


def tiny_model() -> LanguageModel:
    """A random model of two small layers."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=VOCABULARY, initializer_range=0.3, **sizes)
    return LanguageModel(LlamaForCausalLM(config), stop_ids=(STOP,))


def main() -> None:
    torch.manual_seed(0)
    student, teacher = tiny_model(), LocalTeacher(tiny_model())
    objective = ConfidentTeacher(power=0.5)
    optimizer = torch.optim.AdamW(student.model.parameters(), lr=3e-3)
    prompts = [tuple(row) for row in torch.randint(2, VOCABULARY, (16, 4)).tolist()]
    for step in range(20):
        places = [(step, row) for row in range(len(prompts))]
        rollout = decode(student, prompts, Decoding(max_new_tokens=12), seed=0, places=places)
        terms, units = objective.terms(rollout, student, teacher), objective.units(rollout)["student"]
        (terms.losses["student"] / units).backward()
        optimizer.step()
        optimizer.zero_grad()
        figures = " · ".join(f"{name} {value.item() / units:.4f}" for name, value in terms.metrics.items())
        print(f"step {step + 1}: {figures} (means over {units} tokens)")


if __name__ == "__main__":
    main()
