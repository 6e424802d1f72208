"""Train a network with methods: settings, data, networks, the loop, the run's folder, prediction and export."""
