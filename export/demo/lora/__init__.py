"""LoRAs of the demo family: trained styles, saved in the file formats that people use."""
