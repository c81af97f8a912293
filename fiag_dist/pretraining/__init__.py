"""What pretraining alone knows: with what a run may go on, and what more ranks and people cost."""
