// Components that use the hook. What it returned last is `sse`; `go` leads it elsewhere.

import { configureSSE, useSSE } from "@sse-app/client/react";
import { StrictMode, useState } from "react";
import { createRoot } from "react-dom/client";

const { server, token } = globalThis.given;
configureSSE({ baseURL: server, token, share: false });

function Ticks({ options }) {
  const [target, setTarget] = useState(["/api/v1/sse", ["user.tester"]]);
  const [seen, setSeen] = useState(0);
  const [url, channels] = target;
  const onEvent = ({ id, channel }) => {
    log.push({ kind: "event", id, channel, seen });
    setSeen(seen + 1);
  };
  globalThis.go = (...next) => setTarget(next);
  globalThis.sse = useSSE(url, { channels, events: ["tick"], onEvent, ...options });
  return <p>{`${sse.status} ${sse.lastEvent?.data.n}`}</p>;
}

const root = createRoot(document.body.appendChild(document.createElement("div")));
globalThis.unmount = () => root.unmount();
globalThis.mount = (options) =>
  root.render(
    <StrictMode>
      <Ticks options={options} />
    </StrictMode>,
  );
mount({});
