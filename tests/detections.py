"""A detector for tests of the metrics that detect."""


class Found:
    """A detector that finds the same in every picture, whatever it is asked to look for."""

    name = "found"

    def __init__(self, *detections):
        self.detections, self.asked, self.rows = list(detections), [], 0

    def __call__(self, images, labels):
        assert len(images) == len(labels)
        self.rows += len(images)
        self.asked += labels
        return [None if self.detections == [None] else self.detections for _ in labels]
