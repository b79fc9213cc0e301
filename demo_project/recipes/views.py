from django.contrib.staticfiles import finders
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.template.loader import render_to_string
from django.views.decorators.csrf import ensure_csrf_cookie
from django.views.decorators.http import require_safe

from demo_project.recipes.recipes import FRAGMENTS, TUTORIALS
from demo_project.sources import highlight


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    recipes = {"tutorials": TUTORIALS, "fragments": FRAGMENTS}
    return render(request, "recipes/index.html", recipes)


@ensure_csrf_cookie
@require_safe
def page(request: HttpRequest, name: str) -> HttpResponse:
    recipe = next((recipe for recipe in (*TUTORIALS, *FRAGMENTS) if recipe.name == name), None)
    if recipe is None:
        raise Http404
    context = {"recipe": recipe, "server_source": highlight(recipe.source, ".py")}
    if not all(finders.find(f"npm/{file}") for file in recipe.files):
        return render(request, "recipes/not_installed.html", context)
    client = render_to_string(f"recipes/clients/{name}.html")
    context |= {"client": client, "client_source": highlight(client.strip(), ".html")}
    return render(request, f"recipes/{name}.html", context)
