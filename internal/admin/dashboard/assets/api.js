// Asking levee: the same API that anybody may use.

export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const patience = 10_000; // milliseconds for an answer
const again = 2000; // milliseconds until a stream that was refused is asked for anew

// ask does as fetch does, for an answer in JSON or in text. If levee wants a token, the browser asks its user.
export async function ask(path, options = {}, as = "json") {
  const answer = await fetch(path, { signal: AbortSignal.timeout(patience), ...options });
  if (!answer.ok) throw new Refusal(answer.status, await why(answer));
  return answer.status === 204 ? null : answer[as]();
}

async function why(answer) {
  try {
    return (await answer.json()).error ?? answer.statusText;
  } catch {
    return answer.statusText || `status ${answer.status}`;
  }
}

// poll asks again and again, period milliseconds after the answer. What it returns asks at once.
export function poll(path, period, told, failed = () => {}, as = "json") {
  let timer = 0;
  let turn = 0; // an answer to a question that has been put anew is not wanted
  const put = async () => {
    const mine = ++turn;
    clearTimeout(timer);
    const where = typeof path === "function" ? path() : path;
    let answer;
    let problem;
    try {
      if (where) answer = await ask(where, {}, as);
    } catch (error) {
      problem = error;
    }
    if (mine !== turn) return;
    timer = setTimeout(put, period);
    if (problem) failed(problem);
    else if (answer) told(answer, performance.now() / 1000);
  };
  put();
  return put;
}

// listen hears events for as long as the page is open, and how many were lost. The browser goes on by itself after the
// last that it has had, but gives up when it is refused.
export function listen(path, told, lost) {
  const stream = new EventSource(path);
  stream.onmessage = (event) => told(event.data);
  stream.addEventListener("lost", (event) => lost(JSON.parse(event.data).lost));
  stream.onerror = () => {
    if (stream.readyState === EventSource.CLOSED) setTimeout(() => listen(path, told, lost), again);
  };
}
