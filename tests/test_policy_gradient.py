"""The loss of GRPO: against a plain formula, against TRL, and whatever it is computed beside."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tiny_models import tiny_model, tiny_tokenizer
from tunesmith.train import policy_step
from tunesmith.train.loop import Settings, State, make_optimizer, micro_batches
from tunesmith.train.losses import lay_out, packed_rows
from tunesmith.train.policy_gradient import Objective, advantages, has_signal, token_terms
from tunesmith.train.policy_step import (
    Policy,
    Rollout,
    backward,
    known_log_probs,
    log_probs,
)
from tunesmith.types import Encoded, Origin

CPU = torch.device("cpu")
STOP = 3
CASES = {
    "plain": Objective(),
    "kl": Objective(kl=0.3),
    "clipped": Objective(clip_low=0.1, clip_high=0.25),
    "clipped, kl": Objective(clip_low=0.1, clip_high=0.25, kl=0.3),
}


def rollout(groups: int = 3, answers: int = 4) -> Rollout:
    """Return answers of random length to prompts that all begin alike."""
    draw = random.Random(5)
    head = [draw.randrange(4, 300) for _ in range(40)]
    rows = []
    for group in range(groups):
        prompt = [*head, *(draw.randrange(4, 300) for _ in range(3 + 2 * group))]
        for at in range(answers):
            answer = [draw.randrange(4, 300) for _ in range(draw.randrange(2, 12))] + [STOP]
            ids = tuple(prompt + answer)
            weights = (0.0,) * len(prompt) + (1.0,) * len(answer)
            rows.append(Encoded(ids, weights, Origin("test", item=f"{group}/{at}")))
    scores = [[float(draw.random() < 0.5) for _ in range(answers)] for _ in range(groups - 1)]
    rewards = torch.tensor([*scores, [1.0] * answers], dtype=torch.float64)
    return Rollout(rows, advantages(rewards).flatten().tolist())


def batches(made: Rollout, capacity: int = 120, shared: str = "auto") -> Any:
    sizes = [len(row.ids) for row in made.rows]
    settings = Settings(1e-3, capacity=capacity, shared_prefix=shared)
    return micro_batches(range(len(made.rows)), made.rows, sizes, settings)


def perturbed(known: dict[int, torch.Tensor], by: float = 0.3) -> dict[int, torch.Tensor]:
    made = torch.Generator().manual_seed(1)
    return {at: one + by * torch.randn(one.shape, generator=made) for at, one in known.items()}


def answer_part(row: Encoded) -> int:
    return row.weights.index(1.0)


def plain(
    model: Any, made: Rollout, policy: Policy, old: Any, reference: Any
) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss and gradients by the formula as it is written down, row by row."""
    model.zero_grad()
    total = torch.zeros(())
    tokens = 0
    for at, row in enumerate(made.rows):
        begin = answer_part(row)
        logits = model(torch.tensor([row.ids])).logits[0, begin - 1 : -1] / policy.temperature
        chosen = torch.distributions.Categorical(logits=logits).log_prob(
            torch.tensor(row.ids[begin:])
        )
        before = chosen.detach() if old is None else old[at]
        for place in range(len(chosen)):
            ratio = torch.exp(chosen[place] - before[place])
            own, worth = policy.objective, made.advantages[at]
            own_ratio = ratio
            if worth > 0 and ratio.item() > 1 + own.clip_high:
                ratio = torch.tensor(1 + own.clip_high)
            if worth < 0 and ratio.item() < 1 - own.clip_low:
                ratio = torch.tensor(1 - own.clip_low)
            total = total - ratio * worth
            if reference is not None:
                gap = reference[at][place] - chosen[place]
                total = total + own.kl * own_ratio * (torch.exp(gap) - gap - 1)
            tokens += 1
    (total / tokens).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return float(total.detach()) / tokens, found


def prepared(case: str, model: Any, made: Rollout, policy: Policy) -> tuple[Any, Any]:
    """Return old log-probabilities and those of the reference, where the case has them."""
    known = known_log_probs(model, made.rows, batches(made), CPU, policy)
    other = known_log_probs(tiny_model(seed=1), made.rows, batches(made), CPU, policy)
    old = perturbed(known) if "clipped" in case else None
    # Weights as large as a test's model has them disagree by tens of nats.
    reference = {at: known[at] + 0.05 * (other[at] - known[at]) for at in known}
    return old, reference if "kl" in case else None


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def far(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of two sets of gradients, relative to the norm of all."""
    assert one.keys() == other.keys()
    norm = sum(float(value.double().square().sum()) for value in other.values()) ** 0.5
    gap = sum(float((one[n] - other[n]).double().square().sum()) for n in one) ** 0.5
    return gap / norm


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_are_those_of_the_formula(case: str) -> None:
    model, made = tiny_model(), rollout()
    policy = Policy(CASES[case], (STOP,), temperature=0.8)
    old, reference = prepared(case, model, made, policy)
    loss, wanted = plain(model, made, policy, old, reference)
    sums, _ = backward(model, made, batches(made), CPU, policy, old=old, reference=reference)
    assert sums.loss == pytest.approx(loss, rel=1e-5, abs=1e-7)
    assert far(gradients(model), wanted) < 1e-5
    assert (sums.clipped > 0.05) is ("clipped" in case)
    assert (sums.kl > 0) is ("kl" in case)


def trainer(model: Any, objective: Objective, temperature: float, folder: Path, kind: str) -> Any:
    """Return TRL's own trainer around a model; it generates nothing here."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    # Where there is a divergence it opens the model again, by the name of its folder.
    model.save_pretrained(folder / "base")
    model.config._name_or_path = str(folder / "base")
    arguments = trl.GRPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        report_to="none",
        loss_type=kind,
        beta=objective.kl,
        epsilon=objective.clip_low,
        epsilon_high=objective.clip_high,
        temperature=temperature,
        per_device_train_batch_size=4,
        num_generations=4,
        bf16=False,
        gradient_checkpointing=False,
    )
    made = trl.GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["one", "two"] * 4}),
        processing_class=tiny_tokenizer(),
    )
    made.current_gradient_accumulation_steps = 1
    return made


def padded(made: Rollout, old: Any, reference: Any) -> dict[str, torch.Tensor]:
    """Return answers as TRL lays them out: prompts padded on the left, answers on the right."""
    prompts = [row.ids[: answer_part(row)] for row in made.rows]
    answers = [row.ids[answer_part(row) :] for row in made.rows]
    wide, long = max(map(len, prompts)), max(map(len, answers))

    def right(rows: Any, filler: float) -> torch.Tensor:
        return torch.stack(
            [
                torch.cat([torch.as_tensor(one), torch.full((long - len(one),), filler)])
                for one in rows
            ]
        )

    inputs = {
        "prompt_ids": torch.tensor([[0] * (wide - len(p)) + list(p) for p in prompts]),
        "prompt_mask": torch.tensor([[0] * (wide - len(p)) + [1] * len(p) for p in prompts]),
        "completion_ids": right([torch.tensor(a) for a in answers], 0).long(),
        "completion_mask": right([torch.ones(len(a)) for a in answers], 0).long(),
        "advantages": torch.tensor(made.advantages),
        "num_items_in_batch": torch.tensor(made.tokens),
    }
    if old is not None:
        inputs["old_per_token_logps"] = right([old[at] for at in range(len(answers))], 0.0)
    if reference is not None:
        inputs["ref_per_token_logps"] = right([reference[at] for at in range(len(answers))], 0.0)
    return inputs


@pytest.mark.parametrize("kind", ["bnpo", "dapo"])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_are_those_of_trl(case: str, kind: str, tmp_path: Path) -> None:
    """TRL's own ``_compute_loss`` on the same answers, advantages and probabilities."""
    pytest.importorskip("trl")
    model, made = tiny_model(), rollout()
    policy = Policy(CASES[case], (STOP,), temperature=0.8)
    old, reference = prepared(case, model, made, policy)
    theirs = copy.deepcopy(model).train()
    peer = trainer(theirs, policy.objective, policy.temperature, tmp_path, kind)
    peer.args.steps_per_generation = 1
    loss = peer._compute_loss(peer.model, padded(made, old, reference))
    loss.backward()
    sums, _ = backward(model, made, batches(made), CPU, policy, old=old, reference=reference)
    assert sums.loss == pytest.approx(loss.item(), rel=1e-5, abs=1e-7)
    assert far(gradients(model), gradients(peer.model)) < 1e-5
    [clipped] = peer._metrics["train"]["clip_ratio/region_mean"]
    assert sums.clipped == pytest.approx(clipped, abs=1e-6)
    assert (clipped > 0.05) is ("clipped" in case)
    [entropy] = peer._metrics["train"]["entropy"]
    assert sums.entropy == pytest.approx(entropy, rel=1e-5)
    if reference is not None:
        assert sums.kl == pytest.approx(peer._metrics["train"]["kl"][0], rel=1e-5)


def test_advantages_are_deviations_in_units_of_the_groups_spread() -> None:
    scores = [[1.0, 0.0, 0.5], [1.0, 1.0, 1.0], [0.1, 0.1, 0.1]]
    rewards = torch.tensor(scores, dtype=torch.float64)
    wanted = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    found = advantages(rewards)
    assert torch.allclose(found[0], wanted[0])
    assert not found[1:].any()  # the mean of three times 0.1 is not exactly 0.1
    assert has_signal(rewards).tolist() == [True, False, False]
    assert torch.allclose(advantages(rewards, scale=False)[0], rewards[0] - rewards[0].mean())


def test_an_answer_without_a_grade_is_neither_right_nor_wrong() -> None:
    nan = float("nan")
    found = advantages(torch.tensor([[1.0, 0.0, nan], [nan, nan, nan], [1.0, nan, nan]]))
    assert found[0].tolist() == [*advantages(torch.tensor([[1.0, 0.0]]))[0].tolist(), 0.0]
    assert not found[1:].any()


def test_clipping_takes_the_gradient_only_where_the_ratio_went_the_way_of_the_advantage() -> None:
    log_ratio = torch.tensor([0.5, 0.5, -0.5, -0.5], requires_grad=True)
    worth = torch.tensor([1.0, -1.0, 1.0, -1.0])
    terms = token_terms(log_ratio, torch.zeros(4), worth, Objective(0.2, 0.3))
    terms.losses.sum().backward()
    assert log_ratio.grad is not None
    assert (log_ratio.grad == 0).tolist() == terms.clipped.tolist() == [True, False, False, True]
    assert terms.losses[0].item() == pytest.approx(-1.3)
    assert terms.losses[3].item() == pytest.approx(0.8)


def test_what_an_answer_is_computed_beside_changes_nothing() -> None:
    """Shared prompts, many sequences or one: the same loss; without signal, left out."""
    model, made = tiny_model(), rollout()
    policy = Policy(Objective(), (STOP,))
    found = []
    saying = [at for at, worth in enumerate(made.advantages) if worth]
    assert 0 < len(saying) < len(made.rows)
    sizes = [len(row.ids) for row in made.rows]
    few = micro_batches(saying, made.rows, sizes, Settings(1e-3, capacity=64))
    for several in (batches(made, 64, "off"), batches(made, 2048), few):
        model.zero_grad()
        sums, _ = backward(model, made, several, CPU, policy)
        kept = {name: grad.clone() for name, grad in gradients(model).items()}
        found.append((sums.loss, kept))
    assert len(batches(made, 2048)) == 1 < len(few)
    for loss, kept in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        assert far(kept, found[0][1]) < 1e-5


def test_every_inner_step_is_measured_against_the_policy_that_wrote_the_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, made = tiny_model(), rollout()
    policy = Policy(Objective(), (STOP,), inner_steps=3)
    known = known_log_probs(model, made.rows, batches(made), CPU, policy)
    settings, seen = Settings(1e-2), []

    def watched(*given: Any, **more: Any) -> Any:
        seen.append(more["old"])
        return backward(*given, **more)

    monkeypatch.setattr(policy_step, "backward", watched)
    state = State(model, make_optimizer(model, settings))
    accelerator = SimpleNamespace(device=CPU, num_processes=1)
    done = policy_step.policy_step(state, made, policy, settings, accelerator, rate=1e-2)
    assert (done.updates, state.step, seen[0]) == (3, 1, None)
    assert done.clipped > 0
    for old in seen[1:]:
        assert all(torch.allclose(one, known[at], atol=1e-5) for at, one in old.items())


def test_the_end_of_an_answer_is_any_of_the_stop_tokens() -> None:
    model, made = tiny_model(), rollout(1, 1)
    batch = lay_out(made.rows)
    with torch.no_grad(), packed_rows(model, batch):
        one = log_probs(model, batch, CPU, Policy(Objective(), (STOP,))).log_probs
        two = log_probs(model, batch, CPU, Policy(Objective(), (STOP, 2))).log_probs
        known = model(input_ids=torch.tensor([made.rows[0].ids])).logits[0, -2].log_softmax(-1)
    assert torch.equal(one[:-1], two[:-1])
    wanted = (known[STOP].exp() + known[2].exp()).log()
    assert two[-1].item() == pytest.approx(wanted.item(), rel=1e-4)
    assert two[-1] > one[-1]
