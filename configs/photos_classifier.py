"""The photos classifier behind "Fréchet distance, photos classifier": it names the photo of a 32x32 crop.

    python main.py --config configs/photos_classifier.py

Three minutes on one CPU core. Made what the package ships as jaxmerge/assets/photos_classifier: 79 930
parameters, those of step 900 (lowest validation loss); right on 95 % of the training crops, 87 % of the 304
validation crops and 83 % of the 484 test crops, which come from other regions of the same ten photos.
"""

from configs import default


def get_config(variant: str = ""):
    """The shipped classifier's training.

    Raises:
        ValueError: any variant; there is none.
    """
    if variant:
        raise ValueError(f"configs/photos_classifier.py has no variants, got {variant!r}; leave it out.")
    config = default.get_config()
    config.task = "train_classifier"
    config.data.name = "photos"
    config.classifier.steps = 2000
    config.classifier.batch_size = 64
    config.classifier.learning_rate = 2e-3
    config.classifier.width = 16
    config.classifier.shift = 4
    config.classifier.fill = "mirror"
    config.classifier.flip = True
    return config
