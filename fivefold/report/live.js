// A page that is served: what runs is asked for every second, the page itself anew where something is new in it.
(() => {
  const EVERY = 1000;
  const place = document.getElementById("running");
  const parse = (text) => new DOMParser().parseFromString(text, "text/html");
  let version = document.documentElement.dataset.version, lost = false;

  async function ask(path) {
    const answer = await fetch(path);
    if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
    return answer;
  }

  async function look() {
    const names = [...place.querySelectorAll("details[open]")].map((one) => ["open", one.dataset.name]);
    const news = await (await ask(`/live?${new URLSearchParams(names)}`)).json();
    if (lost) fivefold.say("");
    lost = false;
    show(news.running);
    if (news.version !== version) await renew();
  }

  function show(html) {
    if (place.dataset.shown === html) return;
    place.dataset.shown = html;
    const focused = place.contains(document.activeElement) ? document.activeElement.closest("details")?.dataset.name : null;
    place.innerHTML = html;
    place.hidden = !html;
    if (focused) place.querySelector(`details[data-name="${CSS.escape(focused)}"] summary`)?.focus({preventScroll: true});
  }

  // Parts that have changed are replaced, the others stay as they are.
  async function renew() {
    const fresh = parse(await (await ask("/")).text());
    for (const part of document.querySelectorAll("[data-part]")) {
      const other = fresh.querySelector(`[data-part="${part.dataset.part}"]`);
      if (other && other.innerHTML !== part.innerHTML) part.replaceWith(document.adoptNode(other));
    }
    version = fresh.documentElement.dataset.version;
    fivefold.take(fresh.getElementById("data").textContent);
  }

  fivefold.fromServer(async (label) => {
    try {
      const found = parse(await (await ask(`/detail?${new URLSearchParams({label})}`)).text());
      return fivefold.make("div", {}, ...found.body.childNodes);
    } catch (error) {
      return fivefold.make("p", {class: "note"}, "This page is not served any more.");
    }
  });

  async function always() {
    try {
      await look();
    } catch (error) {
      if (!lost) fivefold.say(`Not served since ${new Date().toLocaleTimeString()}; the page is as it was then.`);
      lost = true;
    }
    setTimeout(always, lost ? 5 * EVERY : EVERY);
  }
  always();
})();
