"""Defects planted one at a time in a copy of the package: a quick test must catch each of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PACKAGE = HERE.parent / "src" / "tunesmith"
FAILED = 1
"""What pytest returns when tests ran and some failed; a copy that cannot be imported gives 2."""


@dataclass(frozen=True)
class Defect:
    """A piece of source, what is put in its place, and the test that fails for it."""

    name: str
    file: str
    right: str
    wrong: str
    caught_by: str


RESUME = "test_checkpoint.py::test_interrupted_equals_uninterrupted_to_the_bit"
DEFECTS = (
    Defect(
        "dropout draws from whatever random state there is",
        "train/loop.py",
        "torch.manual_seed(_step_seed(work.seed, state.step, work.accelerator.process_index))",
        "_step_seed(work.seed, state.step, work.accelerator.process_index)",
        "test_training.py::test_dropout_follows_from_seed_and_step_alone",
    ),
    Defect(
        "the seed of dropout is the same at every step",
        "train/loop.py",
        "_step_seed(work.seed, state.step, work",
        "_step_seed(work.seed, 0, work",
        "test_safety_of_steps.py::test_dropout_differs_from_step_to_step",
    ),
    Defect(
        "a written file is not synced",
        "storage.py",
        "                os.fsync(file.fileno())\n            temporary.replace(path)",
        "                pass\n            temporary.replace(path)",
        "test_rundir.py::test_the_file_is_on_the_disk_before_it_gets_its_name",
    ),
    Defect(
        "the files of a folder are not synced before its rename",
        "storage.py",
        "sync_folder(path) if path.is_dir() else sync_file(path)",
        "path.is_dir()",
        "test_safety_of_steps.py::test_all_of_a_checkpoint_is_synced_before_it_gets_its_name",
    ),
    Defect(
        "the folder is renamed before it is filled",
        "storage.py",
        "            partial.mkdir(parents=True)\n",
        "            partial.mkdir(parents=True)\n            partial.rename(target)\n"
        "            partial.symlink_to(target)\n",
        "test_safety_of_steps.py::test_all_of_a_checkpoint_is_synced_before_it_gets_its_name",
    ),
    Defect(
        "the order of rows is off by one",
        "train/batches.py",
        "return order[start : start + self.rows_a_step]",
        "return order[start + 1 : start + 1 + self.rows_a_step]",
        "test_training.py::test_each_epoch_holds_each_row_once",
    ),
    Defect(
        "the order of rows is that of the first epoch always",
        "train/batches.py",
        "order = _remembered_order(self.rows, self.seed, epoch)",
        "order = _remembered_order(self.rows, self.seed, 0)",
        "test_safety_of_steps.py::test_every_epoch_has_an_order_of_its_own",
    ),
    Defect(
        "the ledger is not saved",
        "train/checkpoint.py",
        '"ledger": state.ledger.to_json()',
        '"ledger": type(state.ledger)().to_json()',
        RESUME,
    ),
    Defect(
        "the ledger is not looked at",
        "train/ledger.py",
        "if self != planned:",
        "if False:",
        "test_training.py::test_ledger_notices_a_row_that_was_left_out",
    ),
    Defect(
        "the optimiser's state is not restored",
        "train/checkpoint.py",
        '_unflat(state.optimizer, load_file(path / "optimizer.safetensors"), content["optimizer"])',
        "pass",
        RESUME,
    ),
    Defect(
        "the step is not restored",
        "train/checkpoint.py",
        'state.step = int(content["step"])',
        'state.step = int(content["step"]) - 1',
        RESUME,
    ),
    Defect(
        "the schedule is off by one",
        "train/loop.py",
        "share = factor(settings.schedule, state.step, plan",
        "share = factor(settings.schedule, state.step + 1, plan",
        "test_training.py::test_the_rate_of_the_schedule_is_the_one_that_is_used",
    ),
    Defect(
        "accumulation divides by each micro-batch's own tokens",
        "train/loop.py",
        "loss = (found.losses * found.weights).sum() / weight *",
        "loss = (found.losses * found.weights).sum() / found.weights.sum() *",
        "test_training.py::test_one_by_eight_equals_four_by_two",
    ),
    Defect(
        "the loss mask is shifted by one",
        "train/losses.py",
        "return [at - 1 for at, weight in enumerate(row.weights) if weight and at]",
        "return [at for at, weight in enumerate(row.weights) if weight and at + 1 < len(row.ids)]",
        "test_training.py::test_loss_is_the_hand_computed_one",
    ),
    Defect(
        "padding is attended to",
        "train/losses.py",
        "[[1] * n + [0] * (longest - n) for n in lengths(rows)]",
        "[[0] * (longest - n) + [1] * n for n in lengths(rows)]",
        "test_training.py::test_packed_equals_unpacked",
    ),
    Defect(
        "gradients are clipped after each micro-batch",
        "train/loop.py",
        "            total += loss.detach()\n",
        "            total += loss.detach()\n            _clip(state, settings, accelerator)\n",
        "test_safety_of_steps.py::test_gradients_are_clipped_once_a_step",
    ),
    Defect(
        "checkpoints are pruned before the newest is verified",
        "train/checkpoint.py",
        "    newest, _ = latest(folder)\n    if newest is None:",
        "    newest = next((path for _, path in steps(folder)), None)\n    if newest is None:",
        "test_checkpoint.py::test_nothing_is_pruned_where_nothing_verifies",
    ),
    Defect(
        "the manifest is written first",
        "train/checkpoint.py",
        '        save_file(trained, partial / "model.safetensors")\n',
        '        (partial / MANIFEST).write_text("{}")\n'
        '        save_file(trained, partial / "model.safetensors")\n',
        "test_safety_of_steps.py::test_the_manifest_is_written_last",
    ),
    Defect(
        "hashes are not checked",
        "train/checkpoint.py",
        'if hash_file(path / file) != facts["sha256"]:',
        "if False:",
        "test_checkpoint.py::test_a_damaged_checkpoint_is_never_used",
    ),
    Defect(
        "the best model has the highest loss",
        "workflows/progress.py",
        "self.best is None or loss < self.best",
        "self.best is None or loss > self.best",
        "test_early_stopping.py::test_losses_are_counted_since_the_best",
    ),
    Defect(
        "the best checkpoints have the highest losses",
        "workflows/progress.py",
        "in sorted(one for one in taken if one[0] == one[0])[:count]",
        "in sorted(one for one in taken if one[0] == one[0])[::-1][:count]",
        "test_early_stopping.py::test_steps_are_ranked_by_their_loss",
    ),
    Defect(
        "an update is made with gradients that are not finite",
        "train/policy.py",
        "finite = math.isfinite(loss) and math.isfinite(norm)",
        "finite = math.isfinite(loss)",
        "test_policy.py::test_stop_makes_no_update_and_names_every_row",
    ),
    Defect(
        "weights that are not finite are saved",
        "train/checkpoint.py",
        "    check_finite(state)\n",
        "",
        "test_policy.py::test_broken_weights_are_never_saved",
    ),
    Defect(
        "a skipped step is not entered in the ledger",
        "train/loop.py",
        "            state.ledger.skip(state.step, picked)\n",
        "",
        "test_policy.py::test_skip_goes_on_and_enters_the_ledger",
    ),
    Defect(
        "a skip is not kept",
        "train/decisions.py",
        "        self.skips[step] = why\n        self._keep()\n",
        "        self.skips[step] = why\n",
        "test_policy.py::test_skip_goes_on_and_enters_the_ledger",
    ),
    Defect(
        "the scale of fp16 is not restored",
        "train/checkpoint.py",
        'state.scaler.load_state_dict(content["scaler"])',
        "pass",
        "test_policy.py::test_overflows_are_counted_and_their_scale_resumes_to_the_bit",
    ),
    Defect(
        "gradients of the failed attempt are kept",
        "train/shrink.py",
        "        state.optimizer.zero_grad(set_to_none=True)\n",
        "",
        "test_memory_limit.py::test_a_failure_at_a_forward_changes_no_loss",
    ),
)


def test_every_defect_has_its_place_in_the_source() -> None:
    for defect in DEFECTS:
        found = (PACKAGE / defect.file).read_text(encoding="utf-8").count(defect.right)
        assert found == 1, f"«{defect.name}»: the source has changed, so plant it anew"


@pytest.mark.slow
@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_a_planted_defect_is_caught(defect: Defect, tmp_path: Path) -> None:
    copy = tmp_path / "src" / "tunesmith"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    source = (copy / defect.file).read_text()
    assert source.count(defect.right) == 1, "the source has changed: plant the defect anew"
    (copy / defect.file).write_text(source.replace(defect.right, defect.wrong))
    tests = tmp_path / "tests"
    shutil.copytree(HERE, tests, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(HERE.parent / "pyproject.toml", tmp_path)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "no:xdist", str(tests / defect.caught_by)]
    settings = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    settings.pop("PYTEST_XDIST_WORKER", None)
    done = subprocess.run(
        command, env=settings, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == FAILED, f"{defect.name} survived:\n{done.stdout}{done.stderr}"
    assert "FAILED" in done.stdout or "FAILURES" in done.stdout
