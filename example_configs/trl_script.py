"""PACT in a TRL script, on the shipped model: run from the top of the repository with

python example_configs/trl_script.py
"""

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from pact_plugins import PactCallback

model = "pact_plugins/demo/models/aligned"
trainer = SFTTrainer(
    model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
    processing_class=AutoTokenizer.from_pretrained(model),
    args=SFTConfig(
        output_dir="outputs/first-run",
        max_steps=20,
        per_device_train_batch_size=16,
        learning_rate=0.003,
        assistant_only_loss=True,
        logging_steps=5,
        report_to="none",
        bf16=False,
        use_cpu=True,
    ),
    train_dataset=load_dataset("json", data_files="example_configs/demo-rows.jsonl", split="train"),
    peft_config=LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"]),
)
# How-to questions are all that the tiny model knows of; for your own model, `PactCallback(trainer)`.
trainer.add_callback(PactCallback(trainer, eval={"prompts": ["held-out-how-to"]}))
trainer.train()
trainer.save_model()
