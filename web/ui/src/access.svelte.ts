/** What this browser may do. The service decides; the page only leaves out what would be refused. */

import { whenRole } from "./api";

export const access = $state<{ viewer: boolean }>({ viewer: false });

whenRole((role) => {
  access.viewer = role === "viewer";
});
