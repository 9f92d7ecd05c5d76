"""What everybody speaks: errors, tasks, images, noise, cost and precision. It imports no other room."""
