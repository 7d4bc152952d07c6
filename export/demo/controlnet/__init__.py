"""ControlNets of the demo family: control images, training, adherence, evaluation."""
