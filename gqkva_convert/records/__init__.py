"""Files beside the weights: reports, measurements, licences; one type each for writer and reader."""
