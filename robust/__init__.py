"""robust: adversarially robust and pruned networks, one stage a command.

`python -m robust pretrain | train | score | finetune | evaluate`: contrastive pretraining (RoCL),
adversarial training (TRADES), importance scores and fine-tuning under a mask (HYDRA), attacks.
Importing the package costs nothing; the modules below it import torch.
"""
