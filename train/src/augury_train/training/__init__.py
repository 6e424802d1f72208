"""Training, as a loop around four hooks:

    methods.pre_train_stage()                                  # hook 1: once, before a fresh training
    for epoch in range(epochs):
        for batch in loader.epoch(epoch):                      # each image in `views` versions
            methods.augment_batch(batch)                       # hook 2: changes images, labels, shares, smoothing
            output = forward(network, batch.images)            # features and logits
            loss = methods.compute_loss(batch, output)         # hook 3: the criterion and what methods add
            loss.backward(); optimizer.step(); methods.step()
        row = evaluate(network, val)
        row |= methods.post_epoch(row)                         # hook 4: logs
        write(row); checkpoint()

`trainer` sets a run up, `loop` is the loop above, `checkpoint` and `recorder` keep what must not be lost.
"""
