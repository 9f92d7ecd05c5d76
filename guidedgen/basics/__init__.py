"""What all packages share: errors, tasks, images, noise, cost and precision. It imports no other package."""
