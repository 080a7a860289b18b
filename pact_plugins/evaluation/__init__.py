"""Did it hold? Prompt sets, answers, judges and statistics for a model before and after fine-tuning."""
