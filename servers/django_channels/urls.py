"""Django's URLconf, and Django's own errors in OpenAI's envelope."""

from functools import partial

from django.urls import path

from servers.contract.api import ContractError
from servers.django_channels import views
from servers.django_channels.generation import KINDS

urlpatterns = [
    path("health", views.health),
    path("v1/models", views.models),
    *(
        path(name.removeprefix("/"), views.completions, {"kind": kind})
        for name, kind in KINDS.items()
    ),
]
handler400 = partial(views.refused, ContractError(400, "Django refuses this request"))
handler404 = partial(views.refused, ContractError(404, "there is no such path"))
handler500 = partial(views.refused, ContractError(500, "the server failed"))
