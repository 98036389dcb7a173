"""Networks: tensors in, tensors out. No file, flag, class name or print lives here."""


def model_config(name: str) -> type:
    """The config class of a model. Raises ValueError for a name that is not known."""
    from model.config import MODELS
    if name not in MODELS:
        raise ValueError(f"model config: model is {name!r}, not one of {', '.join(MODELS)}")
    return MODELS[name]


def needs_masks(name: str) -> bool:
    """Whether the model of this name learns and finds masks, so that data sets have to be opened with them."""
    return model_config(name).network().needs_masks


def parse_config(config: dict):
    """The record of a plain config dict; config["model"] names the model. Raises ValueError for a name or a field that is not known."""
    return model_config(config.get("model", "fcos")).from_dict(config)


def build_model(config: dict):
    """The network that a plain config dict (from a checkpoint or from flags) describes. Raises ValueError as `parse_config` does."""
    config = parse_config(config)
    return config.network()(config)


def load_model(config: dict, state_dict: dict, device="cpu"):
    """The network of a checkpoint (its "config" and "model"), ready to detect on `device`; weights are channels_last."""
    import torch
    network = build_model(config)
    network.load_state_dict(state_dict)
    return network.to(device=device, memory_format=torch.channels_last).eval()
