"""The pictures of `data=image_folder`, decoded before the training begins and held in memory, without augmentation."""

from typing import Any

from digit_classifier.engine.data.image_folder import ImageFolderDataModule
from digit_classifier.engine.data.samples import SamplesInMemory


class DecodedDataModule(ImageFolderDataModule):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options | {"augment": None, "num_workers": 0})
        for split, samples in self.samples.items():
            self.samples[split] = SamplesInMemory(*samples.__getitems__(list(range(len(samples)))))
