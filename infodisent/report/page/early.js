// Before anything is painted: a page with scripts does not first show what those without see, unless
// the scripts fail to start.
document.documentElement.classList.add("js");
addEventListener("error", () => {
  if (!document.documentElement.dataset.ready) document.documentElement.classList.remove("js");
});
