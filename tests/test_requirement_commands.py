"""Every command of the five requirement documents, in the spelling that it has here.

Paths and flags are those of the documents. What a hub holds is replaced by local rows and the
built-in model (``STANDS_FOR``), so that nothing asks for a network.
"""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunesmith.cli import main

ROOT = Path(__file__).parent.parent
TINY = "tunesmith/tiny"
STANDS_FOR = {
    "meta-llama/Llama-3.2-1B": TINY,
    "microsoft/DialoGPT-medium": TINY,
    "alpaca-instruct": "./data.jsonl",
    "codeparrot/github-code": "./code_data.jsonl",
    "--max-length 4096": "--max-length 2048",  # the built-in model's positions
    "--mixed-precision fp16": "--mixed-precision bf16",  # fp16 is for GPUs
    "--num-workers 8": "--num-workers 1",
    "checkpoint-step-1000": "checkpoint-step-2",
}
"""What a document names → what is taken here."""
QUIET = "--report-to none --no-rehearsal --no-forgetting --eval-samples 0"
"""What a run of seconds does without; no document says anything of it."""
ORCA = """train --model_name_or_path meta-llama/Llama-3.2-1B --dataset_name mixed_finetuning_dataset
 --dataset_test_split validation --output_dir ./models/llama-1b-orca-finetuned
 --learning_rate 2e-5 --num_train_epochs 3 --per_device_train_batch_size 2
 --gradient_accumulation_steps 4 --packing True --eval_strategy steps --eval_steps 100
 --logging_steps 25"""
SOT = """train --task socratic --train_file sot_training_data.jsonl
 --model_name_or_path microsoft/DialoGPT-medium --output_dir ./output --num_train_epochs 3
 --per_device_train_batch_size 8 --learning_rate 5e-5"""
SOT_ALL = """train --task socratic --train_file generated_30000_full.jsonl
 --model_name_or_path microsoft/DialoGPT-medium --output_dir ./sot_model_output --use_lora
 --lora_rank 32 --lora_alpha 16 --lora_dropout 0.1 --max_seq_length 1024
 --per_device_train_batch_size 4 --learning_rate 3e-5 --num_train_epochs 5
 --gradient_accumulation_steps 2 --warmup_ratio 0.1 --logging_steps 20
 --checkpointing_steps epoch --seed 42"""
FINAL = "./05_model_training/checkpoints/final_model"
TUNED = "./fine_tuned_models/chat_chat_data/final_model"
TRAINS = {
    "000 sft.py": ORCA,
    "002 fine-tunning.py": "train --task domain --source_file roberto_data.txt",
    "002 fine_tuning_lora.py": "train --task domain --source_file roberto_data.txt --lora",
    "003 lora": f"""train --task instruct --base-model {FINAL} --dataset alpaca-instruct --lora
 --lora-rank 16 --output-dir ./fine_tuned_models""",
    "003 hub": f"""train --task code --base-model {FINAL} --dataset "codeparrot/github-code"
 --output-dir ./fine_tuned_models""",
    "003 full": "train --task domain --base-model ./base_model --dataset ./domain_data.jsonl",
    "003 lora of rank 8": """train --task chat --base-model ./base_model
 --dataset ./chat_data.jsonl --lora --lora-rank 8""",
    "003 layer freezing": """train --task instruct --base-model ./base_model
 --dataset ./instruct_data.jsonl --freeze-ratio 0.7""",
    "003 custom": "train --task custom --base-model ./base_model --dataset ./data.jsonl",
    "003 quick_test": """train --task chat --config quick_test --base-model ./base_model
 --dataset ./test_data.jsonl""",
    "003 low_resource": """train --task instruct --config low_resource --base-model ./base_model
 --dataset ./data.jsonl""",
    "003 high_quality": """train --task domain --config high_quality --base-model ./base_model
 --dataset ./domain_data.jsonl""",
    "003 checkpointing": """train --task code --base-model ./base_model
 --dataset ./code_data.jsonl --gradient-checkpointing --max-length 4096""",
    "003 mixed precision": """train --task domain --base-model ./base_model
 --dataset ./domain_data.jsonl --mixed-precision bf16""",
    "003 frequent evaluation": """train --task instruct --base-model ./base_model
 --dataset ./data.jsonl --eval-steps 50 --save-steps 200""",
    "003 out of memory": """train --task chat --base-model ./base_model --dataset ./chat_data.jsonl
 --per-device-train-batch-size 1 --gradient-accumulation-steps 8 --gradient-checkpointing
 --lora --lora-rank 4""",
    "003 slow training": """train --task chat --base-model ./base_model
 --dataset ./chat_data.jsonl --mixed-precision fp16 --max-length 512 --num-workers 8""",
    "003 poor performance": """train --task chat --base-model ./base_model
 --dataset ./chat_data.jsonl --num-epochs 10 --learning-rate 1e-6 --lora --lora-rank 32""",
    "004 basic": SOT,
    "004 custom parameters": SOT_ALL,
}
"""Trainings that need nothing made by another command."""
QUICK = (
    "000 sft.py",
    "002 fine_tuning_lora.py",
    "003 lora",
    "003 layer freezing",
    "003 custom",
    "003 low_resource",
    "004 custom parameters",
)
"""Those that the default set runs; the others are for the nightly one."""
MIX = """
rows: 8
validation: 0.25
sources:
  - {name: one, dataset: data.jsonl, share: 0.5}
  - {name: two, dataset: test_data.jsonl, share: 0.5}
erasure: {mode: replace}
"""


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    """Lay out the files that the documents name, each of six rows."""
    monkeypatch.chdir(tmp_path)
    for name in ("base_model", FINAL):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).symlink_to(tiny)
    asked = [{"instruction": f"Add 1 to {n}.", "output": f"{n + 1}"} for n in range(6)]
    talks = [
        {
            "messages": [
                {"role": "user", "content": f"Hi {n}!"},
                {"role": "assistant", "content": "Hi!"},
            ]
        }
        for n in range(6)
    ]
    paired = [{"prompt": f"Hello {n}", "response": "Hi."} for n in range(6)]
    code = [{"prompt": f"Add {n}.", "completion": f"x + {n}"} for n in range(6)]
    texts = [{"text": f"In {n} it rained."} for n in range(6)]
    listed = [{"instruction": f"Why {n}?", "output": ["Who?", f"Is {n} odd?"]} for n in range(6)]
    Path("datasets").mkdir()
    for rows, *names in (
        (asked, "data.jsonl", "instruct_data.jsonl", "large_dataset.jsonl"),
        (talks, "chat_data.jsonl", "datasets/chat_data.jsonl", "my_data.jsonl"),
        (paired, "test_data.jsonl"),
        (code, "code_data.jsonl"),
        (texts, "domain_data.jsonl"),
        (listed, "sot_training_data.jsonl", "generated_30000_full.jsonl"),
    ):
        for name in names:
            Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    places = (("Bilbao", 1971), ("Madrid", 1982), ("Sevilla", 1993), ("Toledo", 2004))
    Path("roberto_data.txt").write_text(
        "\n\n".join(f"Roberto {town} Works was founded in {year}." for town, year in places)
    )
    Path("create_mixed_dataset.yaml").write_text(MIX)


def words(line: str) -> list[str]:
    for named, taken in STANDS_FOR.items():
        line = line.replace(named, taken)
    found = shlex.split(line)
    return [*found, *shlex.split(QUIET)] if found[0] == "train" else found


def do(line: str) -> None:
    assert main(words(line)) == 0, line


def rows_of(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TRAINS],
)
def test_a_training(name: str) -> None:
    if "mixed_finetuning_dataset" in TRAINS[name]:
        do("data mix create_mixed_dataset.yaml --output mixed_finetuning_dataset")
    do(TRAINS[name])
    parent = words(TRAINS[name])
    places = [w for w in ("--output_dir", "--output-dir") if w in parent]
    folder = Path(parent[parent.index(places[0]) + 1] if places else "runs")
    assert [run / "final_model" for run in folder.iterdir() if (run / "final_model").is_dir()]


@pytest.mark.slow
def test_001_from_the_base_to_rejection_sampling() -> None:
    """base_llm test, cot test, sft train/test, datagen generate_dataset, rft train/test."""
    do(f"eval --task units --model {TINY} --prompt direct --limit 2 --max-new-tokens 8")
    do(f"eval --task units --model {TINY} --prompt cot --limit 2 --max-new-tokens 8")
    short = "--max-rows 8 --num-epochs 1 --eval-questions 0 --run-name units"
    do(f"train --task units --output_dir ./sft_model_checkpoint {short}")
    do(f"sample --task units --model {TINY} --prompt cot --samples 10 --output_json rft_data.json "
       "--limit 4 --max-new-tokens 60")  # fmt: skip
    question, answer, reasoning = json.loads(Path("rft_data.json").read_text())[0]
    assert isinstance(question, str)
    assert isinstance(answer, float)
    assert isinstance(reasoning, str)
    do(f"train --task units --dataset rft_data.json --output_dir ./rft_model_checkpoint {short} "
       "--validation-split 0")  # fmt: skip
    ask = "--limit 2 --max-new-tokens 8"
    do(f"eval --task units --ckpt_path ./sft_model_checkpoint {ask} --name sft")
    do(f"eval --task units --ckpt_path ./rft_model_checkpoint {ask} --name rft")
    assert {"sft", "rft"} <= {folder.name for folder in Path("runs").iterdir()}


def test_002_rows_and_questions_about_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """raft_data_generator.py, test_raft_model.py."""
    do("data raft --documents roberto_data.txt --chunk-size 300 --num-distractors 3 "
       "--distractor-probability 0.5 --validation-split 0")  # fmt: skip
    row = rows_of("raft_training_data.jsonl")[0]
    assert {"instruction", "output", "oracle_context", "num_distractors"} <= row.keys()
    assert row["output"].startswith("Based on the documents: ")
    do(f"eval --task raft --model {TINY} --dataset raft_training_data.jsonl --limit 1 "
       "--max-new-tokens 8")  # fmt: skip
    monkeypatch.setattr(sys, "stdin", io.StringIO("Where does Roberto work?\n"))
    do(f"chat --model {TINY} --documents roberto_data.txt --max-new-tokens 8")


def test_002_the_whole_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    """run_raft.py, config.yaml."""
    recipe = ROOT / "recipes" / "raft.yaml"
    do(f"run {recipe} rows.raft.documents=roberto_data.txt rows.raft.chunk_size=10 "
       "tuned.max_steps=2 tuned.report_to=none tuned.forgetting=false")  # fmt: skip
    assert Path("runs/raft/report.html").is_file()


@pytest.mark.slow
def test_003_validate_train_ask_and_deliver(monkeypatch: pytest.MonkeyPatch) -> None:
    """validate_dataset.py, fine_tune.py --task chat, test_model.py, prepare_for_deployment.py."""
    do("data validate --dataset ./my_data.jsonl --task chat")
    do(f"train --task chat --base-model {FINAL} --dataset ./datasets/chat_data.jsonl "
       "--output-dir ./fine_tuned_models --save-steps 2 --max-length 512")  # fmt: skip
    made = {path.name for path in Path(TUNED).iterdir()}
    assert {"config.json", "tokenizer.json", "README.md", "model.safetensors"} <= made
    assert Path("fine_tuned_models/chat_chat_data/checkpoints/checkpoint-step-2").is_dir()
    assert (Path(TUNED).parent / "best_model").is_dir()
    do(f"train --task chat --base-model {FINAL} --dataset ./datasets/chat_data.jsonl "
       "--output-dir ./fine_tuned_models --save-steps 2 --max-length 512 "
       "--resume checkpoint-step-1000")  # fmt: skip
    do(f"generate --model-path {TUNED} --prompt Hello! --max-new-tokens 8")
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello!\n"))
    do(f"chat --model-path {TUNED} --max-new-tokens 8")
    do(f"eval --task chat --model-path {TUNED} --dataset ./my_data.jsonl --limit 2 "
       "--max-new-tokens 8")  # fmt: skip
    do(f"export --model-path {TUNED} --output-dir ../07_deployment/models")
    assert Path("../07_deployment/models/bundle/model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        f"{ORCA} --device cpu",
        """train --task chat --base-model ./base_model --dataset ./large_dataset.jsonl
 --config production --device cpu""",
    ],
)
def test_accelerate_launch(line: str) -> None:
    do("data mix create_mixed_dataset.yaml --output mixed_finetuning_dataset")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file",
              str(ROOT / "recipes/accelerate/cpu_two.yaml"), "-m", "tunesmith"]  # fmt: skip
    given = [word for word in words(line) if word != "--no-rehearsal"]
    done = subprocess.run([*launch, *given], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
