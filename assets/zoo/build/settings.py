"""Every number of the recipe that is a choice."""

from dataclasses import dataclass

EVALUATION_SIZE = 1000
TEST_FAMILIES = 10
VALIDATION_FAMILIES = 10
POOL_CHUNK = 4000

FONT_SEED = 11
TASK_SEED = 12
POOL_SEED = 13
PRETRAIN_SEED = 14
FINETUNE_SEED = 15
SURROGATE_SEED = 16
MIXTURE_SEED = 17


@dataclass(frozen=True)
class Pretraining:
    """Contrastive training of the whole model.

    Attributes:
        steps: Updates.
        processes: Single-thread processes that average their gradients.
        batch: Images per process and step.
        learning_rate: Peak of the cosine.
        warmup: Steps to reach it.
        weight_decay: On matrices only.
        largest_scale: Ceiling of the logit scale; above about 40 the image loss rises again.
        bank_steps: Steps between refreshes of the text bank.
        image_share: Share of the image -> caption loss; the rest is caption -> image.
    """

    steps: int = 7500
    processes: int = 2
    batch: int = 160
    learning_rate: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.1
    largest_scale: float = 40.0
    bank_steps: int = 40
    image_share: float = 0.75


@dataclass(frozen=True)
class Finetuning:
    """Training of one vision tower on one task, text tower frozen."""

    steps: int = 450
    batch: int = 128
    learning_rate: float = 1.3e-4
    flip: bool = False


PRETRAINING = Pretraining()
FINETUNING = {
    "MNIST": Finetuning(),
    "Fashion": Finetuning(steps=800, flip=True),
    "QuickDraw": Finetuning(flip=True),
    "Emoji": Finetuning(steps=600, learning_rate=1.1e-4),
    "Flags": Finetuning(steps=600, learning_rate=1.1e-4),
    "Street": Finetuning(),
    "Letters": Finetuning(steps=600),
    "Textures": Finetuning(),
}
