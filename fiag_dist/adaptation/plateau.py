"""When an identity has learnt what it can: its score on held-out frames no longer rises."""

from dataclasses import dataclass, field

from fiag_dist.config import PlateauConfig


@dataclass
class Plateau:
    """Watches one score over the looks that were taken at it."""

    config: PlateauConfig
    scores_db: list[float] = field(default_factory=list)
    """All looks, in order: what a checkpoint keeps of it."""

    def look(self, score_db: float) -> bool:
        """Takes in a look, and returns whether the last `patience` of them brought no rise over the best before them."""
        self.scores_db.append(score_db)
        best, calm = float("-inf"), 0
        for score in self.scores_db:
            calm = 0 if score > best + self.config.rise_db else calm + 1
            best = max(best, score) if calm == 0 else best
        return bool(self.config.patience) and calm >= self.config.patience
