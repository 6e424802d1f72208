"""Networks: every classifier that timm knows, ours among them."""

from __future__ import annotations

from augury_train.backbones import densenet_cifar as densenet_cifar  # joins timm's registry, as the others of this form
from augury_train.backbones import pyramidnet_cifar as pyramidnet_cifar
from augury_train.backbones import resnet_cifar as resnet_cifar
from augury_train.backbones import resnet_small_stem as resnet_small_stem
from augury_train.backbones import shakeshake_cifar as shakeshake_cifar
from augury_train.backbones import wrn_cifar as wrn_cifar
from augury_train.backbones.building import build as build
from augury_train.backbones.building import check_start as check_start
from augury_train.backbones.building import data_config as data_config
from augury_train.backbones.building import fixed_size as fixed_size
from augury_train.backbones.building import start_notes as start_notes
from augury_train.backbones.building import untrained as untrained
from augury_train.backbones.inspecting import Facts as Facts
from augury_train.backbones.inspecting import inspect_model as inspect_model
