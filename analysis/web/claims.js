// Published numbers beside ours.
const claimGrid = grid("published numbers and ours", (title, up) => change({ sort: `${title} ${up ? "up" : "down"}` }));
const tally = el("ul", { class: "tally" });
const GOOD = ["exact", "agrees", "reproduced", "same direction"];
const BAD = ["disagrees", "not reproduced", "opposite direction"];
for (const claim of data.claims) {
  claim.search = searchable(claim.method, claim.id, claim.what, claim.model, claim.protocol, claim.verdict, claim.verified);
}

function verdictKind(verdict) {
  if (verdict.includes("explained")) return "fair";
  return BAD.some((text) => verdict.startsWith(text)) ? "bad" : GOOD.some((text) => verdict.startsWith(text)) ? "good" : "none";
}

const left = (title, show) => ({ title, left: true, key: (claim) => String(claim[show]), show: (claim) => String(claim[show]) });
const CLAIM_COLUMNS = [
  { ...left("method", "method"), kind: "narrow" }, { ...left("what", "what"), kind: "wide" },
  { title: "model", left: true, kind: "middle", key: (claim) => claim.model, show: (claim) => el("span", {}, claim.model, el("small", {}, claim.protocol)) },
  { title: "published", key: (claim) => claim.published, show: (claim) => claim.published },
  { title: "ours", key: (claim) => (claim.ours === DASH ? null : claim.ours), show: (claim) => claim.ours },
  { title: "ratio", key: (claim) => claim.ratio, show: (claim) => (claim.ratio === null ? DASH : String(+claim.ratio.toPrecision(4))) },
  { title: "verdict", left: true, kind: "middle", key: (claim) => claim.verdict, show: verdictOf },
  { title: "where", left: true, kind: "middle", key: (claim) => claim.where, show: (claim) => el("span", {}, claim.where, el("small", {}, claim.verified)) },
  { title: "why, from what", left: true, kind: "wide", key: (claim) => claim.why.join(" "), show: reasonOf },
];

function verdictOf(claim) {
  return el("span", { class: `verdict ${verdictKind(claim.verdict)}` }, claim.verdict);
}

// The cells that a number comes from are opened; overrides that were counted are shown.
function reasonOf(claim) {
  const cells = claim.source.filter((one) => resultsIn.has(one));
  const rest = claim.source.filter((one) => !resultsIn.has(one));
  const links = unique(cells).map((cell) => el("a", { href: linkTo({ cell }) }, cell));
  const counted = rest.length ? [el("code", {}, rest.join(" "))] : [];
  return el("div", {}, ...claim.why.map((text) => el("p", {}, text)), ...[...links, ...counted].flatMap((link) => [link, " "]));
}

function drawClaims() {
  const wanted = words();
  const rows = data.claims.filter((claim) => (!state.verdict || claim.verdict === state.verdict) && (!state.kind || claim.kind === state.kind) && matches(claim.search, wanted));
  const verdicts = byKey(data.claims, (claim) => claim.verdict);
  tally.replaceChildren(...[...verdicts].map(([verdict, own]) => el("li", {}, el("span", { class: `verdict ${verdictKind(verdict)}` }, verdict), ` ${own.length}`)));
  claimGrid.show(rows, CLAIM_COLUMNS, state.sort);
  $("count").textContent = rows.length === data.claims.length ? plural(rows.length, "claim") : `${rows.length} of ${plural(data.claims.length, "claim")}`;
}

$("view-claims").append(tally, claimGrid.box);
if (data.claims.length) addView("claims", "Claims", ["q", "verdict", "kind", "sort"], drawClaims);
