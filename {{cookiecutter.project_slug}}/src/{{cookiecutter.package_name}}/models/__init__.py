"""The LightningModule and the networks that it trains."""
