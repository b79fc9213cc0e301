from django.contrib.staticfiles import finders
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.csrf import ensure_csrf_cookie
from django.views.decorators.http import require_safe

from demo_project.recipes.recipes import FRAGMENTS, TUTORIALS


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
    there = all(finders.find(f"npm/{file}") for file in recipe.files)
    template = f"recipes/{name}.html" if there else "recipes/not_installed.html"
    return render(request, template, {"recipe": recipe})
