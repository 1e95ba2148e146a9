"""Federated meta-learning of image fields in about ten lines: FedMeNF on the photographs of scikit-image."""

from fedfields.federation import Local, Method
from fedfields.fields import Siren
from fedfields.losses import FieldLoss
from fedfields.objectives import Inner, Maml, MeNF
from fedfields.runtime.evaluation import quality_of
from fedfields.runtime.inprocess import train
from fedfields.scenes.data import Data
from fedfields.seeds import generator

photographs = Data(size=32).load(seed=0)
field = Siren(width=64, depth=3)
start = field.init(in_dim=2, out_dim=3, generator=generator(0, "init"))
method = Method(MeNF(Maml(Inner(steps=8, lr=0.1, batch=256)), gamma=0.25), Local(steps=2, lr=1e-3))
params = train(method, photographs.clients, FieldLoss(field), start, rounds=15, cohort=4, seed=0)

print("PSNR by adaptation step on photographs of owners who took no part:")
print("random start:", quality_of(field, start, photographs.unseen))
print("federated:   ", quality_of(field, params, photographs.unseen))
