"""Post-training: fine-tuning on answers, reward models, rejection sampling, PPO and DPO."""
