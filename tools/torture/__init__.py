"""What happens to files, texts, processes, disks and addresses that are broken or hostile: `python -m tools.torture`."""
