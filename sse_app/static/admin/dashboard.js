// What the dashboard consists of, and how its parts tell each other that something was done.

import { Fragment, h, onBeforeUnmount, onMounted, ref, shallowRef } from "../vendor/vue.js";
import { Audit } from "./audit.js";
import { Connections } from "./connections.js";
import { History } from "./history.js";
import { LiveFigures } from "./live_figures.js";
import { Present } from "./present.js";
import { Publish } from "./publish.js";
import { Revoke } from "./revoke.js";
import { Users } from "./users.js";

const VIEWS = { "#": "Server", "#users": "Users" };

/** What the part of the address behind the # says is to be seen. */
function useView() {
  const view = ref("");
  const read = () => (view.value = location.hash === "#users" ? "#users" : "#");
  read();
  onMounted(() => addEventListener("hashchange", read));
  onBeforeUnmount(() => removeEventListener("hashchange", read));
  return view;
}

/** All of it, below the connection bar. */
export const Dashboard = {
  props: { session: { type: Object, required: true }, figures: { type: Object, required: true } },
  setup({ session, figures }) {
    const view = useView();
    return () => [
      h("nav", { class: "views", "aria-label": "Views" }, Object.entries(VIEWS).map((each) => link(each, view.value))),
      view.value === "#users" ? h(Users, { session }) : h(Server, { session, figures }),
    ];
  },
};

function link([href, title], shown) {
  return h("a", { href, "aria-current": href === shown ? "page" : undefined }, title);
}

/** The server as a whole: figures, connections, channels, the audit trail. */
const Server = {
  props: { session: { type: Object, required: true }, figures: { type: Object, required: true } },
  setup({ session, figures }) {
    const done = ref(0); // counts what was done here, so that the table and the trail show it
    const onDone = () => (done.value += 1);
    const wanted = shallowRef({ name: "" }); // the channel whose users are to be seen
    const onChannel = (name) => (wanted.value = { name });
    const channels = () => figures.latest.value?.channels.map(({ channel }) => channel) ?? session.channels;
    return () =>
      h(Fragment, [
        h(LiveFigures, { figures, onChannel }),
        h(Connections, { session, done: done.value, onDone }),
        h("div", { class: "columns" }, [
          h(History, { session, channels: channels() }),
          h("div", { class: "stack" }, [
            h(Present, { session, channels: channels(), wanted: wanted.value }),
            h(Publish, { session, channels: channels() }),
            h(Revoke, { session, onDone }),
          ]),
        ]),
        h(Audit, { session, done: done.value }),
      ]);
  },
};
