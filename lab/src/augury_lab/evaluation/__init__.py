"""A close look at trained networks, several side by side:

    subjects = load_subjects(runs)                             # networks, and the images of one split
    for subject in subjects:
        logits, labels = the network's answers                 # metrics, calibration, the worst images
        accuracy of changed images                             # attacks, corruptions, shifts
        confidence on other data                               # outliers
        loss around the weights                                # landscape
    write(tables, pictures)

`evaluator` is that, `subject` what a run gives to it, `results` what comes of it; `writing` and `drawing` make the
files.
"""
