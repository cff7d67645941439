"""From noise to pictures: schedules, the forward process, denoisers, samplers and training."""
