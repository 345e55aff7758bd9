"""What every room uses: files, processes, machine, plots."""
