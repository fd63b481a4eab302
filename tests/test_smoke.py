def test_a_tiny_model_draws(tiny_pipe):
    output = tiny_pipe({'text': 'a cat', 'seed': 3, 'num_inference_steps': 2})
    assert output['output_imgs'][0].shape == (64, 64, 3) and output['seeds'] == [3]
