"""ptuning and PEFT side by side: the same model, rows, batch size, precision, optimizer and learning rate."""
