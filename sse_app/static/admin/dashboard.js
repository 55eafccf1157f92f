// What the dashboard consists of, and how its parts tell each other that something was done.

import { Fragment, h, ref } from "../vendor/vue.js";
import { Audit } from "./audit.js";
import { Connections } from "./connections.js";
import { History } from "./history.js";
import { LiveFigures } from "./live_figures.js";
import { Publish } from "./publish.js";
import { Revoke } from "./revoke.js";

/** All of it, below the connection bar. */
export const Dashboard = {
  props: { session: { type: Object, required: true }, figures: { type: Object, required: true } },
  setup({ session, figures }) {
    const done = ref(0); // counts what was done here, so that the table and the trail show it
    const onDone = () => (done.value += 1);
    const channels = () => figures.latest.value?.channels.map(({ channel }) => channel) ?? session.channels;
    return () =>
      h(Fragment, [
        h(LiveFigures, { figures }),
        h(Connections, { session, done: done.value, onDone }),
        h("div", { class: "columns" }, [
          h(History, { session, channels: channels() }),
          h("div", { class: "stack" }, [h(Publish, { session, channels: channels() }), h(Revoke, { session, onDone })]),
        ]),
        h(Audit, { session, done: done.value }),
      ]);
  },
};
