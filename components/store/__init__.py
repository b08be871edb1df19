"""Object stores, the dataset contract, the image decoder, errors: what every step shares."""
